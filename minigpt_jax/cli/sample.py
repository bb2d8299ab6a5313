"""`minigpt sample RUN_DIR`: samples text from a checkpoint, by any method."""

import dataclasses
import io
import itertools
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from minigpt_jax import utf8
from minigpt_jax.cli import json_text, parser
from minigpt_jax.cli.repeated import LIKE_A_FLAG, flags_of, repeated
from minigpt_jax.errors import UserError, printable
from minigpt_jax.generate.settings import GenerationSettings, Stop

if TYPE_CHECKING:
    from minigpt_jax.samplers import Sampler


@dataclass(frozen=True)
class MethodFlags:
    """The settings of samplers as flags. The help of each names the methods that take it."""

    k: int | None = None
    """top_k, contrastive: how many of the most probable tokens may be taken (10 for top_k, 4 for contrastive)."""
    p: float | None = None
    """top_p, typical: the sum of the probabilities to keep (0.9 for top_p, 0.95 for typical); min_p: the lowest
    probability to keep, relative to that of the most probable token (0.1)."""
    num_beams: int | None = None
    """beam: number of hypotheses (10)."""
    alpha: float | None = None
    """contrastive: weight of the penalty on tokens that resemble the context (0.6)."""
    length_penalty: float | None = None
    """beam: exponent of the length; a greater one favours longer texts (0.6)."""
    temperature: float | None = None
    """random, top_k, top_p, min_p, typical: divides the logits; 0 is greedy (1)."""
    top_k: int | None = None
    """random: keep this many of the most probable tokens. The four filters of random combine, in this order. If one is
    given, random is the default method."""
    top_p: float | None = None
    """random: keep the most probable tokens until their probabilities sum to this."""
    min_p: float | None = None
    """random: keep tokens that are at least this times as probable as the most probable one."""
    typical_p: float | None = None
    """random: order tokens by how close their surprise (-log p) is to the entropy, and keep them until their
    probabilities sum to this."""

    @property
    def default_method(self) -> str:
        """The method if --sampler is not given."""
        filters = (self.top_k, self.top_p, self.min_p, self.typical_p)
        return "top_k" if all(value is None for value in filters) else "random"


@dataclass(frozen=True)
class Arguments:
    """Sample text from a run's model. The text of a single prompt is shown while it is generated, on a terminal."""

    run_dir: parser.RunDir
    """A run directory."""
    prompt: tuple[str, ...] = ()
    """Text to continue. An empty one starts a new text."""
    prompt_file: Path | None = None
    """A text file of prompts, one per line; - is standard input. An empty line is an empty prompt."""
    sampler: str | None = None
    """greedy, beam, random, top_k (the default), top_p, min_p, typical or contrastive. Settings may follow, as in
    top_p:p=0.9:temperature=0.8. FILE.py:Name:setting=1 is a sampler of your own; the file is run."""
    compare: bool = False
    """Compare methods on one prompt, by their texts and figures: all methods, or those of a --sampler with several
    values, such as top_k:k=1,5,10 or random:temperature=0.5..1.5 (five, evenly spaced; 0.5..1.5/9 for
    nine)."""
    method: Annotated[MethodFlags, tyro.conf.arg(name="")] = field(default_factory=MethodFlags)
    settings: Annotated[GenerationSettings, tyro.conf.arg(name="")] = field(default_factory=GenerationSettings)
    stop_token: tuple[int, ...] = ()
    """A token id that ends a text."""
    stop_at_end: bool = False
    """End a text where the model ends its document."""
    ban: tuple[int, ...] = ()
    """The id of a token that is never generated."""
    step: int | Literal["best"] | None = None
    """The checkpoint to take, or best for that of the lowest validation loss; the latest by default."""
    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """If the model needs custom code, run the copy stored in the run directory. Use this only for runs you trust."""
    code: tuple[Path, ...] = ()
    """A file of yours to run in place of that copy."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object per text and line, with prompt, text, full_text, tokens, logprobs and finish_reason. With
    --top-logprobs it also has top_logprobs: for each token, the most probable ones as [id, text, logprob]."""


def main(arguments: list[str]) -> int:
    """Samples. Returns the exit status."""
    _check_dashes(arguments)
    if arguments and not LIKE_A_FLAG.fullmatch(arguments[0]):  # otherwise RUN_DIR may follow a prompt
        arguments = repeated(arguments, flags_of(Arguments))
    # Flags that take several values are repeated.
    chosen: Arguments = parser.parse(tyro.conf.UseAppendAction[Arguments], arguments, "minigpt sample")
    prompts = _prompts(chosen)
    from minigpt_jax.cli import jax_setup

    jax_setup.prepare()
    from minigpt_jax import generate
    from minigpt_jax.generate import methods

    if chosen.compare:
        compared = _compared_methods(chosen, prompts)
    else:
        sampler = methods.parse_one(chosen.sampler or chosen.method.default_method, settings=vars(chosen.method))
    lm = generate.load(chosen.run_dir, chosen.step, trust_code=chosen.trust_code, code=chosen.code)
    settings = chosen.settings.replace(
        stop=[*chosen.settings.stop, *chosen.stop_token, *(lm.end_ids if chosen.stop_at_end else [])],
        logit_bias={**chosen.settings.logit_bias, **dict.fromkeys(chosen.ban, float("-inf"))},
    )
    if chosen.compare:
        _print_comparison(chosen, lm, prompts[0], generate.compare(lm, prompts[0], compared, settings))
        return 0
    if _can_stream(chosen, prompts, sampler):
        for piece in lm.stream(prompts[0], sampler, full=True, settings=settings):
            print(printable(piece), end="", flush=True)
        print()
        return 0
    for generation in lm.generate(prompts, sampler, settings=settings):
        if chosen.json_:
            fields = dataclasses.asdict(generation)
            del fields["score"]
            if fields["top_logprobs"] is None:
                del fields["top_logprobs"]
            print(json_text.dumps(fields))
        else:
            print(printable(generation.full_text.strip()), end="\n\n" if len(prompts) > 1 else "\n")
    return 0


@parser.REGISTRY.primitive_rule
def _stop_flag(kind: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """On the command line a stop is always a string. --stop-token takes ids."""
    if kind.type != Stop:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="TEXT",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


def _check_dashes(arguments: list[str]) -> None:
    """Raises UserError for a prompt or stop string that the parser would take for a flag."""
    for flag, text in itertools.pairwise(arguments):
        if flag in ("--prompt", "--stop") and LIKE_A_FLAG.fullmatch(text):
            raise UserError(
                f"{flag} {text}: a text that begins with a dash would be a flag; write {flag}={shlex.quote(text)}"
            )


def _prompts(chosen: Arguments) -> list[str]:
    """The prompts of the flags, then those of the file. If there are none, one empty prompt."""
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
        text = utf8.decode(raw, label).removeprefix("\ufeff")
        if not text:
            raise UserError(f"{label} is empty; write a prompt on each line, or leave the flag out for an empty prompt")
        # `str.splitlines` would also split at form feeds and Unicode's separators, which are part of a line elsewhere.
        prompts += io.StringIO(text, newline=None).read().removesuffix("\n").split("\n")
    return prompts or [""]


def _compared_methods(chosen: Arguments, prompts: list[str]) -> list["Sampler"]:
    """The methods that --compare runs: those of --sampler, or all."""
    from minigpt_jax import samplers
    from minigpt_jax.generate import methods

    if chosen.sampler is None:
        compared = samplers.create_all(**vars(chosen.method))
    else:
        compared = [one.sampler for one in methods.parse(chosen.sampler, settings=vars(chosen.method))]
        if len(compared) == 1:
            raise UserError(
                f"--compare runs several methods, and --sampler {chosen.sampler} names one; drop one of the two, or "
                "give several values, such as top_k:k=1,5,10"
            )
    if len(prompts) > 1 or chosen.settings.num_return_sequences > 1:
        raise UserError("--compare takes one prompt and one text of each method; give a single --prompt")
    if chosen.settings.stop and not all(method.streams for method in compared):
        raise UserError("--compare runs beam search too, which takes no stop strings; give --stop-token ids instead")
    return compared


def _print_comparison(chosen: Arguments, lm: Any, prompt: str, compared: Iterator[Any]) -> None:
    """Prints the methods' texts and figures, and stores them in the run directory for its report."""
    from rich.table import Table
    from rich.text import Text

    from minigpt_jax.display import console
    from minigpt_jax.generate.methods import shown
    from minigpt_jax.storage.run_dir import RunDir, write_atomic

    rows: list[dict[str, Any]] = []
    for one in compared:
        rows.append(dataclasses.asdict(one))
        if chosen.json_:
            print(json_text.dumps(rows[-1]), flush=True)
    record = {"prompt": prompt, "seed": chosen.settings.seed, "step": lm.step, "rows": rows}
    if not chosen.json_:
        table = Table(title=Text(f"{printable(prompt) or '[BOS]'} …"), title_justify="left", show_lines=True)
        table.add_column("method", no_wrap=True)
        table.add_column("text")
        for row in rows:
            figures = [
                row["sampler"],
                *(f"{name} {shown(value)}" for name, value in row["settings"].items()),
                f"repeated 4-grams {row['repeated_4grams']:.0%}",
                f"distinct-2 {row['distinct_2']:.2f}",
                f"log-prob per token {row['mean_logprob']:.2f}",
                f"{row['tokens_per_second']:,.0f} tokens/s",
            ]
            table.add_row("\n".join(figures), Text(printable(row["full_text"])))
        console.print(table)
    try:
        write_atomic(RunDir(chosen.run_dir).samples / "compare.json", json.dumps(record, ensure_ascii=False, indent=2))
    except OSError:  # the run may be read-only
        print(f"{chosen.run_dir} cannot be written: its report will not show this comparison", file=sys.stderr)


def _can_stream(chosen: Arguments, prompts: list[str], sampler: "Sampler") -> bool:
    one_text = len(prompts) == 1 and chosen.settings.num_return_sequences == 1
    return sys.stdout.isatty() and not chosen.json_ and one_text and sampler.streams
