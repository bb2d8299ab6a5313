"""Validation of an experiment: each field against its declaration, then the rules across fields."""

from pathlib import PurePosixPath
from typing import Any

from minigpt_jax.config.experiment import Experiment
from minigpt_jax.config.options import check_option, flag_name, names_code, options
from minigpt_jax.errors import UserError, refuse_credentials


def validate(experiment: Experiment) -> None:
    """Raises UserError, naming the flag, for the first invalid value."""
    check_fields(experiment)
    _check_names(experiment)
    _check_data(experiment)
    _check_tokenizer(experiment)
    _check_model(experiment)
    _check_training(experiment)


def check_fields(experiment: Experiment) -> None:
    """Raises UserError for the first field whose type, choice or bounds are violated, without rules across fields."""
    for option in options(experiment):
        check_option(option)


def _check_names(experiment: Experiment) -> None:
    name = experiment.name
    _require(bool(name.strip()), "name", repr(name), "must not be empty; it names the run directory, runs/NAME")
    parts = PurePosixPath(name).parts  # none for ".", which is runs itself
    _require(
        name.isprintable() and bool(parts) and not name.startswith(("/", "~")) and ".." not in parts,
        "name",
        repr(name),
        "names the run directory, runs/NAME: take letters and digits, and --run-dir for a folder elsewhere",
    )


def _check_data(experiment: Experiment) -> None:
    data = experiment.data
    for file in data.files:  # first, as other messages show the files
        refuse_credentials(file, "--data.files")
    _require(
        not data.anneal_fraction or (data.layout == "packed" and data.evaluation_layout == "lines"),
        "data.anneal_fraction",
        data.anneal_fraction,
        "needs --data.layout packed and --data.evaluation-layout lines",
    )
    _require(
        data.corpus == "simplebooks" or names_code(data.corpus) or data.archive is None,
        "data.archive",
        data.archive,
        f"is a SimpleBooks archive, but --data.corpus is {data.corpus}; drop one of the two",
    )
    _require(
        data.corpus != "text" or bool(data.files),
        "data.corpus",
        "text",
        "needs --data.files, the files, globs, folders or addresses to read",
    )
    _require(
        all(file.strip() for file in data.files),
        "data.files",
        " ".join(map(repr, data.files)),
        "one of them is blank; name a file, a glob or a folder",
    )
    _require(
        data.corpus == "text" or names_code(data.corpus) or not data.files,
        "data.files",
        " ".join(data.files),
        f"are text files, but --data.corpus is {data.corpus}; add --data.corpus text",
    )
    _require(
        data.separator != "",
        "data.separator",
        "''",
        "must not be empty; give the text that stands between documents, such as '<|endoftext|>', or leave it out",
    )
    _require(
        data.corpus == "text" or names_code(data.corpus) or data.separator is None,
        "data.separator",
        repr(data.separator),
        f"is for text files, but --data.corpus is {data.corpus}; add --data.corpus text",
    )
    _require(
        data.separator is None or data.document == "line",
        "data.separator",
        repr(data.separator),
        "cuts files into documents, but --data.document file takes each as one; drop one of the two",
    )
    _require(
        not experiment.model.isolate_documents or data.layout != "lines",
        "model.isolate_documents",
        True,
        "in the lines layout a row is one document; add --model.no-isolate-documents, or take another --data.layout",
    )


def _check_tokenizer(experiment: Experiment) -> None:
    tokenizer = experiment.tokenizer
    _require(
        tokenizer.kind != "huggingface" or tokenizer.file is not None,
        "tokenizer.kind",
        "huggingface",
        "needs --tokenizer.file, a tokenizer.json",
    )


def _check_model(experiment: Experiment) -> None:
    model = experiment.model
    _require(
        model.head_width is not None or model.width >= model.num_heads,
        "model.num_heads",
        model.num_heads,
        f"must be at most --model.width {model.width}, so that a head is at least 1 wide",
    )
    _require(
        model.num_heads % model.kv_heads == 0,
        "model.num_kv_heads",
        model.kv_heads,
        f"must divide --model.num-heads {model.num_heads}",
    )
    _require(
        model.positions != "rope" or model.head_size % 2 == 0,
        "model.positions",
        "rope",
        "needs heads of an even width, and "
        + (
            f"--model.head-width {model.head_width} is odd"
            if model.head_width
            else f"{model.width} // {model.num_heads} = {model.head_size} is odd"
        )
        + "; choose another --model.head-width",
    )
    _require(
        model.embedding_width is None or model.embedding_width < model.width,
        "model.embedding_width",
        model.embedding_width,
        f"must be less than --model.width {model.width}; leave it out for rows as wide as the model",
    )
    _require(
        model.parametrization == "standard" or model.embedding_width is None,
        "model.parametrization",
        model.parametrization,
        f"does not know how --model.embedding-width {model.embedding_width} grows; drop one of the two",
    )
    _require(
        model.parametrization == "standard" or model.block == "transformer",
        "model.parametrization",
        model.parametrization,
        f"cannot tell the kernels of --model.block {model.block}, code of your own; drop one of the two",
    )


def _check_training(experiment: Experiment) -> None:
    train, optimizer = experiment.train, experiment.optimizer
    _require(
        train.batch_size % train.accumulate == 0,
        "train.accumulate",
        train.accumulate,
        f"must divide --train.batch-size {train.batch_size}",
    )
    _require(
        optimizer.weight_decay == 0 or optimizer.name != "adam",
        "optimizer.weight_decay",
        optimizer.weight_decay,
        "adam has none; take --optimizer.name adamw",
    )


def _require(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise UserError(f"--{flag_name(name)} {value}: {rule}")
