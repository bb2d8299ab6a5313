"""lm-evaluation-harness runs its tasks on a run of this project: the model `minigpt` of its registry.

Importing this module registers the model. `minigpt lm_eval` does so and then is lm_eval's own command line:

    minigpt lm_eval --model minigpt --model_args run_dir=runs/x,step=best --tasks arc_easy

Every text begins with the start token, as in training. For multiple choice and generation these are the numbers of
`--model hf` on the exported folder. For rolling log-likelihoods, as of perplexity tasks, they are those of `--model hf
--model_args pretrained=FOLDER,add_bos_token=False`: without it the harness puts the start token there twice and scores
the second one as text.
"""

import collections
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import lm_eval.models  # noqa: F401  so that the registry has lm_eval's own models too, which it adds only if it is empty
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from minigpt_jax import display, generate
from minigpt_jax.errors import UserError
from minigpt_jax.generate import GenerationSettings, LanguageModel, continuations
from minigpt_jax.samplers import Greedy, Random, Sampler

MAX_GEN_TOKS = 256  # the default of lm_eval's other models
_GENERATION_ROWS = 64
_FILTERS = ("top_k", "top_p", "min_p")
_MODEL_ARGS = ("run_dir", "step", "max_gen_toks", "seed", "trust_code", "code")


@register_model("minigpt")
class MiniGPT(TemplateLM):
    """A trained model as lm_eval asks it.

    Attributes:
        lm: the model.
        batch_size: maximum number of rows of a batch; None to keep the memory of a batch small.
        max_length: the window: most tokens that the model sees at a time.
        max_gen_toks: maximum number of new tokens of a task that sets no limit.
    """

    def __init__(
        self,
        run_dir: str | Path | int | float | LanguageModel | None = None,
        step: int | Literal["best"] | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        seed: int = 0,
        trust_code: bool = False,
        code: str | Path | Sequence[str | Path] = (),
        **unknown: Any,
    ) -> None:
        """Loads the model; the arguments are those of lm_eval's --model_args.

        Args:
            run_dir: a run directory, or a model.
            step: the checkpoint: a step, or "best" for the lowest validation loss; the latest by default.
            batch_size: maximum number of rows of a batch. "auto" and 1, the default of lm_eval, stand for as many as
                keep the memory of a batch small.
            max_batch_size: what "auto" may not exceed.
            device: not used; JAX_PLATFORMS chooses the devices of JAX.
            max_gen_toks: maximum number of new tokens of a task that sets no limit.
            seed: seed of random sampling. A text depends on the seed, its place among the requests and its context.
            trust_code: whether to run the copy of the user's code that the run directory has.
            code: files to run in place of that copy.
            unknown: any other argument is refused.

        Raises:
            UserError: the run or its checkpoint is missing or damaged, or an argument is missing or not allowed.
        """
        super().__init__()
        if unknown:
            name, value = next(iter(unknown.items()))
            raise UserError(f"--model_args {name}={value}: must be one of {', '.join(_MODEL_ARGS)}")
        if run_dir is None:
            raise UserError("--model_args run_dir=DIR is missing; name a run directory")
        if isinstance(run_dir, LanguageModel):
            self.lm = run_dir
        else:
            files = (code,) if isinstance(code, str | Path) else code
            self.lm = generate.load(str(run_dir), step, trust_code=trust_code, code=files)
        self.batch_size = _batch_size(batch_size, max_batch_size)
        self.max_length = self.lm.model.sequence_length
        self.max_gen_toks = max_gen_toks
        self._seed = seed
        self._warned: set[str] = set()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.lm.end_id

    @property
    def prefix_token_id(self) -> int:
        """The token before every text."""
        return self.lm.tokenizer.special.start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, the start token first unless `add_special_tokens` is False."""
        ids = self.lm.tokenizer.encode_batch([string])[0]
        return ids if add_special_tokens is False else [self.prefix_token_id, *ids]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text in nats, long ones in windows that predict each token once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            found = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            before = len(windows)
            windows += [(None, *make_disjoint_window(pair)) for pair in found]
            counts.append(len(windows) - before)
        logprobs = iter([logprob for logprob, _ in self._loglikelihood_tokens(windows, disable_tqdm)])
        totals = [sum(itertools.islice(logprobs, count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation in nats, and whether greedy search would give it.

        Args:
            requests: what to cache each answer by, if anything; the ids of the context; those of the continuation.
            disable_tqdm: whether to show no progress bar.
        """
        pairs = [(context, continuation) for _, context, continuation in requests]
        if any(len(context) + len(continuation) > self.max_length + 1 for context, continuation in pairs):
            self._warn(f"contexts are cut on the left where they exceed the window of {self.max_length:,} tokens")
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        scored = continuations.scores(self.lm, pairs, self.batch_size)
        for i, score in tqdm(scored, "log-likelihoods", len(pairs), disable=disable_tqdm):
            answers[i] = (score.logprob, score.greedy)
            if requests[i][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to the first of the request's strings or the end of the text.

        A context that leaves too little room in the window is cut on the left, after the start token: `max_gen_toks`
        new tokens always fit if they are fewer than the window, and otherwise half of the window's.

        Raises:
            UserError: a request has a setting that is not known here, or one with a value that is not allowed.
        """
        groups: dict[Sampler, list[tuple[int, list[int], GenerationSettings]]] = collections.defaultdict(list)
        for i, request in enumerate(requests):
            context, asked = request.args
            sampler, settings = self._sampling(asked)
            ids, room = self._fitted(self.tok_encode(context, add_special_tokens=False), settings.max_new_tokens or 1)
            groups[sampler].append((i, ids, settings.replace(max_new_tokens=room)))
        texts = [""] * len(requests)
        made = itertools.chain.from_iterable(self._generated(sampler, group) for sampler, group in groups.items())
        for i, text in tqdm(made, "texts", len(requests), disable=disable_tqdm):
            texts[i] = text
            self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes of the model beside its results."""
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.lm.weights))
        return {"model_num_parameters": parameters, "model_step": self.lm.step}

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """No model of this project has a template for chats. Raises UserError if one is asked for."""
        if chat_template:
            raise UserError("--apply_chat_template: a run of this project has no chat template; leave it out")
        return None

    def _sampling(self, asked: dict[str, Any]) -> tuple[Sampler, GenerationSettings]:
        """The sampler and the settings of a request's generation arguments."""
        known: dict[str, Any] = dict(normalize_gen_kwargs(asked, self.max_gen_toks))
        draws = known.pop("do_sample") and known.get("temperature") != 0
        until, room = known.pop("until"), known.pop("max_gen_toks")
        temperature = float(known.pop("temperature", 1.0))
        filters = {name: known.pop(name) for name in _FILTERS if known.get(name) is not None}
        penalty = known.pop("repetition_penalty", 1.0)
        if more := [name for name, value in known.items() if name not in _FILTERS and value is not None]:
            allowed = ("until", "max_gen_toks", "do_sample", "temperature", *_FILTERS, "repetition_penalty")
            raise UserError(f"generation argument {more[0]}={known[more[0]]}: must be one of {', '.join(allowed)}")
        if filters.get("top_k") == 0:  # Transformers' word for none
            del filters["top_k"]
        settings = GenerationSettings(
            max_new_tokens=room,
            seed=self._seed,
            stop=[*(one for one in until if one), *self.lm.end_ids],
            repetition_penalty=penalty,
        )
        return Random(temperature, **filters) if draws else Greedy(), settings

    def _fitted(self, ids: list[int], asked: int) -> tuple[list[int], int]:
        """A context that leaves room in the window, without its start token, and the number of new tokens."""
        window = self.max_length
        most = max(window - asked if asked < window else window // 2, 1) - 1
        if len(ids) > most:
            self._warn(f"contexts are cut on the left to leave room for new tokens in the window of {window:,} tokens")
            ids = ids[len(ids) - most :]
        room = min(asked, window - len(ids))
        if room < asked:
            self._warn(f"fewer than {asked:,} new tokens are made where they exceed the window of {window:,} tokens")
        return ids, room

    def _generated(
        self, sampler: Sampler, group: list[tuple[int, list[int], GenerationSettings]]
    ) -> Iterator[tuple[int, str]]:
        """The texts of requests that share a sampler, with the indices of the requests; long contexts first."""
        group = sorted(group, key=lambda one: -len(one[1]))
        size = self.batch_size or _GENERATION_ROWS
        for first in range(0, len(group), size):
            part = group[first : first + size]
            rows, contexts = [row for row, _, _ in part], [ids for _, ids, _ in part]
            made = self.lm.generate(contexts, sampler, settings=[one for _, _, one in part], row_ids=rows)
            yield from ((row, generation.text) for row, generation in zip(rows, made, strict=True))

    def _warn(self, text: str) -> None:
        """Prints a warning once."""
        if text not in self._warned:
            self._warned.add(text)
            display.warn(text)


def _batch_size(asked: int | str | None, most: int | None) -> int | None:
    """The maximum number of rows of a batch. Raises UserError for anything but a number and "auto"."""
    if asked is None or str(asked).partition(":")[0] == "auto" or str(asked) == "1":
        return most
    if not str(asked).isdecimal() or int(asked) < 1:
        raise UserError(f"--batch_size {asked}: must be auto, or a number from 1")
    return int(asked)
