from .comparison import Compared as Compared
from .comparison import compare as compare
from .generation import Generation as Generation
from .language_model import LanguageModel as LanguageModel
from .loading import load as load
from .settings import GenerationSettings as GenerationSettings
