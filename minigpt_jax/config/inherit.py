"""An experiment that starts from a trained model, whose form and tokenizer it takes."""

import dataclasses

from minigpt_jax.config.code import without_folder
from minigpt_jax.config.experiment import Experiment
from minigpt_jax.config.options import flag_name, options
from minigpt_jax.config.serialization import flatten
from minigpt_jax.errors import UserError


def inherited(experiment: Experiment, initial: Experiment) -> Experiment:
    """The experiment with the model, the tokenizer and the sequence length of another one."""
    model = initial.model
    if experiment.data.layout == "lines":  # a row is one document, so that there is nothing to isolate
        model = dataclasses.replace(model, isolate_documents=False)
    data = dataclasses.replace(experiment.data, sequence_length=initial.data.sequence_length)
    return dataclasses.replace(experiment, data=data, tokenizer=initial.tokenizer, model=model)


def check_inherited(experiment: Experiment, initial: Experiment, source: str) -> None:
    """Checks that an experiment can start from the weights of another one.

    Args:
        source: names the other one in an error.

    Raises:
        UserError: a field on which the weights or their tokens depend differs. The message names its flag.
    """
    theirs, ours = flatten(initial), flatten(experiment)
    for option in options(experiment):
        name, facts = option.name, option.facts
        of_model = name.startswith(("model.", "tokenizer.")) and not facts.adjustable
        if facts.of_tokenizer and None in (ours[name], theirs[name]):
            continue
        if of_model and without_folder(ours[name]) != without_folder(theirs[name]):
            raise UserError(
                f"--{flag_name(name)} {ours[name]}: {source} has {theirs[name]}, on which its weights depend; "
                "drop this flag"
            )
    length, positions = experiment.data.sequence_length, initial.data.sequence_length
    if initial.model.positions == "learned" and length > positions:
        raise UserError(
            f"--data.sequence-length {length}: {source} has learned positions for {positions} tokens; take at most "
            f"{positions}"
        )
