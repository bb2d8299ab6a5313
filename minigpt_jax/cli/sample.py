"""`minigpt sample RUN_DIR`: text from a checkpoint, by any method."""

import dataclasses
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from minigpt_jax.corpora import utf8
from minigpt_jax.errors import UserError, printable

METHOD_SETTINGS = ("k", "p", "num_beams", "alpha", "length_penalty", "temperature")
_LIKE_A_FLAG = re.compile(r"--?[^\s\d-]\S*|--")


@dataclass(frozen=True)
class Arguments:
    """Text from a run's model. With one prompt on a terminal, it is shown as it is made."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text to go on from; may be given several times. An empty one starts a new text."""
    prompt_file: Path | None = None
    """A text file of prompts, one per line; - is standard input."""
    sampler: str | None = None
    """greedy, beam, random, top_k (the default), top_p, min_p, typical or contrastive."""
    compare: bool = False
    """Sample one prompt by all methods side by side, with the figures in which they differ."""
    k: int | None = None
    """top_k, contrastive: how many of the most probable tokens may be taken (10 for top_k, 4 for contrastive)."""
    p: float | None = None
    """top_p, typical: the probability mass to keep (0.9, 0.95); min_p: the least probability to keep, as a share of the
    most probable token's (0.1)."""
    num_beams: int | None = None
    """beam: hypotheses (10)."""
    alpha: float | None = None
    """contrastive: weight of the penalty on what resembles the context (0.6)."""
    length_penalty: float | None = None
    """beam: exponent on the length; more of it favours longer texts (0.6)."""
    temperature: float | None = None
    """Methods that draw: divides the logits; 0 is greedy (1)."""
    seed: int = 0
    """With a row's number and the position, all that a random draw depends on."""
    max_new_tokens: int | None = None
    """Tokens to generate; up to the end of the training window by default."""
    min_new_tokens: int = 0
    """A stop that is complete before so many new tokens does not count."""
    num_return_sequences: int = 1
    """Texts for each prompt."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A string that ends a text; may be given several times."""
    stop_token: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = ()
    """A token id that ends a text; may be given several times."""
    stop_at_end: bool = False
    """Let a text end where the model ends its document."""
    ban: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = ()
    """A token id never to generate; may be given several times."""
    repetition_penalty: float = 1.0
    """Divides positive logits and multiplies negative ones, for all tokens so far, the prompt's included; 1: none."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens generated before."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was generated."""
    no_repeat_ngram: int = 0
    """No sequence of so many tokens comes twice."""
    step: int | Literal["best"] | None = None
    """The checkpoint to take, or best for that of the lowest validation loss; the latest by default."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object per line: prompt, text, full_text, tokens, logprobs, finish_reason."""


def main(arguments: list[str]) -> int:
    """Samples; returns the exit status."""
    _check_dashes(arguments)
    chosen = tyro.cli(Arguments, args=arguments, prog="minigpt sample")
    prompts = _prompts(chosen)
    from minigpt_jax.cli import jax_setup

    jax_setup.prepare()
    from minigpt_jax import generate, samplers

    method_settings = {name: getattr(chosen, name) for name in METHOD_SETTINGS}
    if chosen.compare:
        _check_comparison(chosen, prompts)
        methods = samplers.create_all(**method_settings)
    else:
        sampler = samplers.create(chosen.sampler or "top_k", **method_settings)
    lm = generate.load(chosen.run_dir, chosen.step)
    settings: dict[str, Any] = {
        "seed": chosen.seed,
        "stop": [*chosen.stop, *chosen.stop_token, *([lm.end_id] if chosen.stop_at_end else [])],
        "logit_bias": {token: float("-inf") for token in chosen.ban},
    }
    for name in (
        "min_new_tokens",
        "num_return_sequences",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "no_repeat_ngram",
    ):
        settings[name] = getattr(chosen, name)
    if chosen.compare:
        _print_comparison(
            chosen, lm, prompts[0], generate.compare(lm, prompts[0], methods, chosen.max_new_tokens, **settings)
        )
        return 0
    if _can_stream(chosen, prompts):
        settings.pop("num_return_sequences")
        for piece in lm.stream(prompts[0], sampler, chosen.max_new_tokens, full=True, **settings):
            print(printable(piece), end="", flush=True)
        print()
        return 0
    for generation in lm.generate(prompts, sampler, chosen.max_new_tokens, **settings):
        if chosen.json_:
            fields = dataclasses.asdict(generation)
            del fields["score"]
            print(json.dumps(fields, ensure_ascii=False))
        else:
            print(printable(generation.full_text.strip()), end="\n\n" if len(prompts) > 1 else "\n")
    return 0


def _check_dashes(arguments: list[str]) -> None:
    """Raises UserError for a prompt or stop string that the parser would take for a flag."""
    for flag, text in itertools.pairwise(arguments):
        if flag in ("--prompt", "--stop") and _LIKE_A_FLAG.fullmatch(text):
            raise UserError(
                f"{flag} {text}: a text that begins with a dash would be a flag; write {flag}={shlex.quote(text)}"
            )


def _prompts(chosen: Arguments) -> list[str]:
    """The prompts of the flags, then those of the file; one empty prompt where there are none."""
    prompts = list(chosen.prompt)
    if chosen.prompt_file is not None:
        label, path = f"--prompt-file {chosen.prompt_file}", chosen.prompt_file.expanduser()
        try:
            if str(chosen.prompt_file) == "-":
                raw = sys.stdin.buffer.read()
            elif path.exists() and not path.is_file():  # a pipe would wait forever
                raise UserError(f"{label} is not a file; name a text file, or - for standard input")
            else:
                raw = path.read_bytes()
        except OSError as error:
            raise UserError(f"{label} cannot be read: {error.strerror}; name a text file") from error
        utf8.check_encoding(raw, label)
        prompts += utf8.decode(raw, label).removeprefix("\ufeff").splitlines()
    return prompts or [""]


def _check_comparison(chosen: Arguments, prompts: list[str]) -> None:
    if chosen.sampler is not None:
        raise UserError(f"--compare runs all methods, and --sampler {chosen.sampler} names one; drop one of the two")
    if len(prompts) > 1 or chosen.num_return_sequences > 1:
        raise UserError("--compare takes one prompt and one text of each method; give a single --prompt")
    if chosen.stop:
        raise UserError("--compare runs beam search too, which takes no stop strings; give --stop-token ids instead")


def _print_comparison(chosen: Arguments, lm: Any, prompt: str, compared: Iterator[Any]) -> None:
    """Prints the methods as they come, and keeps them in the run directory for its report."""
    from rich.table import Table
    from rich.text import Text

    from minigpt_jax.display import console
    from minigpt_jax.storage.run_dir import RunDir, write_whole

    rows: list[dict[str, Any]] = []
    for one in compared:
        rows.append(dataclasses.asdict(one))
        if chosen.json_:
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    record = {"prompt": prompt, "seed": chosen.seed, "step": lm.step, "rows": rows}
    if not chosen.json_:
        table = Table(title=Text(f"{printable(prompt) or '[BOS]'} …"), title_justify="left", show_lines=True)
        table.add_column("method", no_wrap=True)
        table.add_column("text")
        for row in rows:
            figures = [
                row["sampler"],
                *(f"{name} {value:g}" for name, value in row["settings"].items()),
                f"repeated 4-grams {row['repeated_4grams']:.0%}",
                f"distinct-2 {row['distinct_2']:.2f}",
                f"log-prob per token {row['mean_logprob']:.2f}",
                f"{row['tokens_per_second']:,.0f} tokens/s",
            ]
            table.add_row("\n".join(figures), Text(printable(row["full_text"])))
        console.print(table)
    try:
        write_whole(RunDir(chosen.run_dir).samples / "compare.json", json.dumps(record, ensure_ascii=False, indent=2))
    except OSError:  # someone else's run, to be read only
        print(f"{chosen.run_dir} cannot be written: its report will not show this comparison", file=sys.stderr)


def _can_stream(chosen: Arguments, prompts: list[str]) -> bool:
    one_text = len(prompts) == 1 and chosen.num_return_sequences == 1
    return sys.stdout.isatty() and not chosen.json_ and one_text and chosen.sampler != "beam"
