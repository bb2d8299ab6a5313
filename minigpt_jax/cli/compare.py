"""`minigpt compare RUN_DIR METHOD …`: ways of sampling side by side over many prompts, beside human text."""

import csv
import dataclasses
import io
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from minigpt_jax.cli import json_text, parser
from minigpt_jax.errors import UserError
from minigpt_jax.files import make_folder

if TYPE_CHECKING:
    from minigpt_jax.generate.verdict import Verdict


@dataclass(frozen=True)
class Arguments:
    """Compare ways of sampling over many prefixes of held-out text, beside the human continuations of them.

    Writes results.csv, results.jsonl and report.html, with the measures of Holtzman et al. (2020), distinct n-grams and
    MAUVE, and marks the method whose measures are nearest to those of human text.
    """

    run_dir: parser.RunDir
    """A run directory."""
    method: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="METHOD …"), parser.SEVERAL]
    """The methods, such as greedy, top_p:p=0.9:temperature=0.8, top_k:k=1,5,10,40 (four methods),
    random:temperature=0.5..1.5 (five, evenly spaced; 0.5..1.5/9 for nine) or FILE.py:Name:setting=1."""
    prompts: int = 200
    """Number of prefixes."""
    prompt_tokens: int = 32
    """Tokens in a prefix."""
    max_new_tokens: int = 96
    """The most tokens in a continuation. It also ends where the model ends the document."""
    split: Literal["valid", "test"] = "valid"
    """The part of the corpus that the prefixes come from."""
    files: tuple[str, ...] = ()
    """Take the prefixes from this text instead: files, globs, folders or addresses, divided into rows like the run's
    corpus."""
    seed: int = 0
    """Seed of the choice of prefixes and of the random draws."""
    out: Path | None = None
    """Folder to write to; by default, compare in the run directory."""
    step: int | Literal["best"] | None = None
    """The checkpoint to use, or best for that of the lowest validation loss; by default, the latest."""
    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """If the model needs custom code, run the copy stored in the run directory. Use this only for runs you trust."""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """A file of yours to run in place of such a copy; may be given several times."""


def main(arguments: list[str]) -> int:
    """Compares; returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "minigpt compare")
    for flag, value, least in (
        ("--prompts", chosen.prompts, 2),
        ("--prompt-tokens", chosen.prompt_tokens, 1),
        ("--max-new-tokens", chosen.max_new_tokens, 1),
    ):
        if value < least:
            raise UserError(f"{flag} {value}: must be {least} or more")
    from minigpt_jax.cli import jax_setup

    jax_setup.prepare()
    from minigpt_jax import display, generate
    from minigpt_jax.cli import text_part
    from minigpt_jax.generate import held_out, measures, verdict
    from minigpt_jax.report import page, verdict_page
    from minigpt_jax.storage.run_dir import RunDir

    measures.check_installed()
    asked = verdict.methods_of(chosen.method)
    run_dir = RunDir(chosen.run_dir)
    run_dir.description()  # fails if there is no run, in whose place no folder is made
    folder = make_folder(chosen.out or run_dir.path / "compare", "--out")
    lm = generate.load(chosen.run_dir, chosen.step, trust_code=chosen.trust_code, code=chosen.code)
    verdict.check_methods(asked, len(lm.tokenizer))
    part, rows = text_part.read(lm, chosen.run_dir, chosen.split, chosen.files)
    layout = lm.experiment.data.layout_of(chosen.split)
    pieces = held_out.held_out(
        rows,
        layout,
        lm.tokenizer.special.start,
        lm.end_id,
        chosen.prompts,
        chosen.prompt_tokens,
        chosen.max_new_tokens,
        chosen.seed,
    )
    if len(pieces) < chosen.prompts:
        display.warn(f"the text of {part} has {len(pieces):,} such prefixes, fewer than --prompts {chosen.prompts:,}")
    found = verdict.compare(lm, asked, pieces, chosen.max_new_tokens, chosen.seed, progress=True)
    lead = (
        f"{lm.experiment.name}, step {lm.step:,} · {len(pieces):,} prefixes of {chosen.prompt_tokens} tokens "
        f"from {part} · at most {chosen.max_new_tokens} new tokens · seed {chosen.seed}"
    )
    prompts = [lm.tokenizer.decode(piece.prefix) for piece in pieces]
    built = verdict_page.build(found, prompts, lead, shlex.join(["./launch.sh", "compare", *arguments]))
    html = page.write(built, folder, flag="--out")
    _write(folder, found)
    page.show(verdict_page.table(found), display.console)
    display.console.print(display.printable(str(html)))
    return 0


def _write(folder: Path, verdicts: list["Verdict"]) -> None:
    """Writes results.csv and results.jsonl: a row for each method."""
    from minigpt_jax.generate.verdict import MEASURES
    from minigpt_jax.storage.run_dir import write_atomic

    records = []
    for one in verdicts:
        record = dataclasses.asdict(one)
        intervals = record.pop("intervals")
        record |= {f"{name}_{end}": intervals[name][i] for name in MEASURES for i, end in enumerate(("low", "high"))}
        records.append({key: None if value != value else value for key, value in record.items()})
    table = [{key: value for key, value in one.items() if key not in ("texts", "settings")} for one in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0])
    writer.writeheader()
    writer.writerows(table)
    write_atomic(folder / "results.csv", text.getvalue())
    write_atomic(folder / "results.jsonl", "".join(json_text.dumps(one) + "\n" for one in records))
