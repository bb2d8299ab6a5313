# What `import minigpt_jax` offers: the lazy imports of __init__.py and type checkers both read this list.
from . import config as config
from . import corpora as corpora
from . import errors as errors
from . import generate as generate
from . import interchange as interchange
from . import model as model
from . import samplers as samplers
from . import sweep as sweep
from . import tokenizer as tokenizer
from . import train as train
from .config import DataConfig as DataConfig
from .config import Experiment as Experiment
from .config import ModelConfig as ModelConfig
from .config import OptimizerConfig as OptimizerConfig
from .config import SampleConfig as SampleConfig
from .config import TokenizerConfig as TokenizerConfig
from .config import TrainConfig as TrainConfig
from .errors import UserError as UserError
from .generate import Generation as Generation
from .generate import GenerationSettings as GenerationSettings
from .generate import LanguageModel as LanguageModel
from .generate import load as load
from .interchange.export import export as export
from .interchange.huggingface import load_huggingface as load_huggingface
from .samplers import Beam as Beam
from .samplers import Contrastive as Contrastive
from .samplers import Greedy as Greedy
from .samplers import MinP as MinP
from .samplers import Random as Random
from .samplers import Sampler as Sampler
from .samplers import TopK as TopK
from .samplers import TopP as TopP
from .samplers import Typical as Typical
from .trial.run import Result as Result
from .trial.run import run as run

__version__: str
