"""The README.md of an exported model: what it was trained on, what was measured, how to load it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from minigpt_jax.config import Experiment
from minigpt_jax.generate import LanguageModel

_SPLITS = {"train": "training", "valid": "validation", "test": "test"}


class Exported(NamedTuple):
    """What `export` wrote.

    Attributes:
        class_name: the class of the model in Transformers, or its architecture in llama.cpp.
        reason: why it is that one, in words.
        step: the step of the checkpoint.
        size: the number of bytes of the weights.
        differing: of a WordPiece tokenizer, how many documents of the validation part the exported tokenizer encodes
            otherwise, and how many there are; None if the corpus is not at hand.
        tokenizer: of a GGUF file, how its vocabulary encodes texts, in words.
    """

    class_name: str
    reason: str
    step: int | None
    size: int
    differing: tuple[int, int] | None = None
    tokenizer: str = ""


def model_card(
    lm: LanguageModel,
    done: Exported,
    metrics: Iterable[Mapping[str, Any]],
    name: str,
    *,
    own_code: bool,
    llama_cpp: bool,
) -> str:
    """The text of README.md.

    Args:
        lm: the model.
        done: what was written.
        metrics: the lines of its run's metrics.jsonl.
        name: the name of the folder.
        own_code: whether the folder carries the code of the class.
        llama_cpp: whether llama.cpp has an architecture that computes the model.
    """
    experiment, config = lm.experiment, lm.experiment.model
    parameters = sum(leaf.size for leaf in jax.tree.leaves(lm.weights))
    trust, harness_trust = (", trust_remote_code=True", ",trust_remote_code=True") if own_code else ("", "")
    start, end = (lm.tokenizer.piece(token) or token for token in (lm.tokenizer.special.start, lm.end_id))
    weights = "the moving average of the weights" if experiment.optimizer.ema_decay is not None else "the weights"
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
tags: [minigpt_jax]
# license: to be filled in
---

# {name}

A small GPT, trained from scratch by minigpt_jax: {parameters:,} parameters, {config.num_layers} blocks of width
{config.width}, a vocabulary of {len(lm.tokenizer):,} pieces, a window of {lm.model.sequence_length} tokens. These are
{weights} after {lm.step or 0:,} training steps.

**Class.** {done.class_name}: {done.reason}.

**Trained on** {_corpus(experiment)}.

**Licence**: to be filled in.

## Figures

{_figures(metrics, lm.step)}
{_protocol(lm, start)}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
inputs = tokenizer("once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```

The tokenizer puts `{start}` in front of a text, as in training. A text ends with `{end}`.{_differing(done)}

[lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness) judges the model by its tasks:

```console
$ lm_eval --model hf --model_args pretrained={name}{harness_trust} --tasks arc_easy
```

For perplexity tasks, such as wikitext, append `,add_bos_token=False` to `--model_args`. Otherwise the harness puts
`{start}` before a text twice and scores the second one.
{_gguf(name) if llama_cpp else ""}"""


def _gguf(name: str) -> str:
    """How llama.cpp and Ollama run the model."""
    return f"""
For llama.cpp and Ollama, export the run as a GGUF file (`minigpt export RUN_DIR --to {name}.gguf --format gguf`):

```console
$ llama-completion -m {name}.gguf -p "once upon a time" -n 40 -no-cnv
$ echo 'FROM ./{name}.gguf' > Modelfile && ollama create {name} -f Modelfile && ollama run {name} "once upon a time"
```
"""


def _differing(done: Exported) -> str:
    if done.differing is None:
        return ""
    count, total = done.differing
    return (
        f" Of {total:,} documents of the validation part, tokenizer.json encodes {count:,} differently from training, "
        "where case is folded word by word."
    )


def _corpus(experiment: Experiment) -> str:
    data = experiment.data
    if data.corpus == "simplebooks":
        documents = data.simplebooks
    elif data.corpus == "stories":
        documents = f"{data.stories:,} tales that a grammar generates"
    elif data.corpus == "text":
        documents = "text files: " + ", ".join(f"`{Path(file).name}`" for file in data.files)
    else:
        documents = f"a corpus of its author's, `{Path(data.corpus).name}`"
    if data.layout == "packed":
        return f"{documents}, all of the text, cut into windows of {data.sequence_length} tokens"
    if data.layout == "whole":
        return f"{documents}, all of the text, in windows of {data.sequence_length} tokens that hold whole documents"
    return f"{documents}: the first {data.sequence_length} tokens of each document of more than {data.min_bytes} bytes"


def _protocol(lm: LanguageModel, start: Any) -> str:
    """How the validation and test figures can be computed again."""
    length = lm.model.sequence_length
    text = "Perplexity of the validation and test parts is exp(total negative log-likelihood / number of labels). "
    layout = lm.experiment.data.layout_of("valid")
    if layout == "lines":
        return text + (
            f"A row is `{start}` and the first {length} tokens of a document, and is a context of its own. All tokens "
            f"but `{start}` are labels."
        )
    if layout == "whole":
        return text + (
            f"A row is a context of its own, of at most {length + 1} tokens: one or more documents, with `{start}` "
            "before the first and after each one. Only a document that is longer than a row is cut, into rows that "
            "overlap by one token. All tokens of a row but the first are labels."
        )
    return text + (
        f"The documents are joined to one sequence, with `{start}` before the first and after each one, and cut into "
        f"rows of {length + 1} tokens that overlap by one. A row is a context of its own, and all of its tokens but "
        "the first are labels."
    )


def _figures(metrics: Iterable[Mapping[str, Any]], step: int | None) -> str:
    """A table of what was measured at a step."""
    lines = {line["split"]: line for line in metrics if line["step"] == step and line.get("split") in _SPLITS}
    if not lines:
        return "None were recorded at this step.\n"
    rows = ["| part | loss (nats per token) | perplexity | bits per byte |", "|---|---|---|---|"]
    for split, name in _SPLITS.items():
        if (line := lines.get(split)) is not None:
            figures = [line.get(key) for key in ("loss", "perplexity", "bits_per_byte")]
            shown = ["" if one is None else f"{one:.4f}" for one in figures]
            rows.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(rows) + "\n"
