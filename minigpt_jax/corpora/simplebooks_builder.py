"""SimpleBooks for `tfds.load`: the lines of `simplebooks.SimpleBooks`, as a TensorFlow Datasets builder.

    import tensorflow_datasets as tfds
    import minigpt_jax.corpora.simplebooks_builder  # registers it

    tfds.load("simple_books", split="train")  # the download
    tfds.load("simple_books/simplebooks-2-raw", builder_kwargs={"archive": "FILE.zip"})

Training does not come this way: it streams the lines straight into its token store.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

from minigpt_jax import files
from minigpt_jax.corpora.base import Split
from minigpt_jax.corpora.simplebooks import CONFIGURATIONS
from minigpt_jax.corpora.simplebooks import SimpleBooks as Corpus
from minigpt_jax.corpora.simplebooks_download import download

CITATION = """\
@article{nguyen2019simplebooks,
  title={SimpleBooks: Long-term dependency book dataset with simplified English vocabulary for word-level
    language modeling},
  author={Nguyen, Huyen},
  journal={arXiv preprint arXiv:1911.12391},
  year={2019}
}"""


@dataclasses.dataclass(eq=False, kw_only=True)
class SimpleBooksConfig(tfds.core.BuilderConfig):
    """A configuration of the archive, and where that lies. Its name names the data folder."""

    configuration: str
    archive: str | None = None


class SimpleBooks(tfds.core.GeneratorBasedBuilder):
    """Splits `train`, `validation` and `test` of one feature, `text`, in the archive's order.

    Args:
        archive: a zip file on disk instead of the download. Its SHA-256 is part of the data folder's name, so that
            records prepared from one archive are never taken for another's.
        config: one of `simplebooks.CONFIGURATIONS`; the first by default.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Non-blank lines, in order."}
    BUILDER_CONFIGS: ClassVar = [
        SimpleBooksConfig(name=name, configuration=name, description=f"simplebooks/{name} of the archive.")
        for name in CONFIGURATIONS
    ]
    # Where TFDS would find this out itself, 4.9 imports a package that it does not depend on (importlib_resources).
    code_path = epath.Path(__file__)  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        *,
        archive: str | os.PathLike[str] | None = None,
        config: str | SimpleBooksConfig | None = None,
        **kwargs: Any,
    ):
        if archive is not None:
            path = Path(archive).expanduser().absolute()
            name = config.configuration if isinstance(config, SimpleBooksConfig) else config or CONFIGURATIONS[0]
            corpus = Corpus(path, name, source=f"archive {path}")
            config = SimpleBooksConfig(
                name=f"{name}-{files.sha256(path)[:16]}",
                configuration=name,
                archive=str(path),
                description=f"simplebooks/{name} of an archive with fingerprint {corpus.fingerprint}.",
            )
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Paragraphs of 1,573 Gutenberg books of simple English, one an example.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://arxiv.org/abs/1911.12391",
            citation=CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self.builder_config
        assert isinstance(config, SimpleBooksConfig)
        if config.archive:
            archive, unpacked = Path(config.archive), None
        else:
            archive, unpacked = download(Path(dl_manager.download_dir))
        corpus = Corpus(archive, config.configuration, unpacked, source=f"archive {archive}")
        return {
            "train": self._generate_examples(corpus, "train"),
            "validation": self._generate_examples(corpus, "valid"),
            "test": self._generate_examples(corpus, "test"),
        }

    def _generate_examples(self, corpus: Corpus, split: Split) -> Iterator[tuple[int, dict[str, str]]]:
        for number, text in enumerate(corpus.documents(split)):
            yield number, {"text": text}
