"""SimpleBooks for `tfds.load`: a TensorFlow Datasets builder of the lines of `simplebooks.SimpleBooks`.

    import tensorflow_datasets as tfds
    import minigpt_jax.corpora.simplebooks_builder  # registers the builder

    tfds.load("simple_books", split="train")  # downloads the archive
    tfds.load("simple_books/simplebooks-2-raw", builder_kwargs={"archive": "FILE.zip"})

Training does not use the builder: it streams the lines directly into the token store.
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
    """A configuration of the archive, and the path of the archive. Its name is also that of the data folder."""

    configuration: str
    archive: str | None = None


class SimpleBooks(tfds.core.GeneratorBasedBuilder):
    """The splits `train`, `validation` and `test`, with one feature, `text`, in the order of the archive.

    Args:
        archive: a zip file on disk, which is used instead of the download. Its SHA-256 is part of the name of the data
            folder, so that records of different archives are never confused.
        config: one of `simplebooks.CONFIGURATIONS`; by default the first.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Non-blank lines, in order."}
    BUILDER_CONFIGS: ClassVar = [
        SimpleBooksConfig(name=name, configuration=name, description=f"simplebooks/{name} of the archive.")
        for name in CONFIGURATIONS
    ]
    # To find this path, TFDS 4.9 would import a package that it does not depend on (importlib_resources).
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
            description="Paragraphs of 1,573 Gutenberg books in simple English, one per example.",
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
