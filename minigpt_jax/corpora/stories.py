"""The built-in corpus: short tales drawn from a seeded probabilistic grammar, and their exact probabilities.

The grammar is data (`stories_grammar`, `stories_words`): rules whose options are sequences of words, of mentions
`{slot}` and of other rules. The entry of a slot (such as the hero's name, the place or the lost thing) is drawn where
the tale first mentions it, and remembered from then on. A tale is therefore a sequence of choices. The same function,
`Grammar.choice`, is used to generate and to score: `draw` picks an option at random, and `derivations` follows all
options that the text allows. As both use the same choices, the entropy of held-out tales is known exactly.
"""

import hashlib
import json
import math
import random
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, repeat
from typing import NamedTuple

from minigpt_jax.corpora.base import Split
from minigpt_jax.corpora.stories_grammar import RULES
from minigpt_jax.corpora.stories_words import LEXICONS, SLOTS

MAX_WORDS = 126  # the length limit of a tale: with [BOS] before and after it, it fits into a window of 128
MAX_HELD_OUT = 500  # the most tales in each of validation and test; their mean loss is then known to half a percent
DRAWING = 1  # the version of the algorithm that draws tales; part of the fingerprint


class Mention(NamedTuple):
    """A position where the entry of a slot is mentioned, in one of its forms. The form "" is the entry itself."""

    slot: str
    form: str


class Rule(NamedTuple):
    """A position that is replaced by one of the options of a rule."""

    name: str


Symbol = str | Mention | Rule  # a str is a word of the tale
Memory = Mapping[str, str]  # slot -> the entry drawn for it


class Option(NamedTuple):
    """One way to replace a symbol: the symbols that replace it, the entry to remember, and the log-probability."""

    symbols: tuple[Symbol, ...]
    binding: tuple[str, str] | None
    log_p: float


@dataclass(frozen=True)
class Choice:
    """The options of a symbol. Their cumulative weights are integers, so that draws are the same on every platform."""

    options: tuple[Option, ...]
    cumulative: tuple[int, ...]

    @classmethod
    def of(
        cls,
        weighted: Iterable[tuple[int, tuple[Symbol, ...]]],
        bindings: Iterable[tuple[str, str] | None] = repeat(None),
    ) -> "Choice":
        """The choice among options with these weights and symbols, and with the binding of each."""
        rows = tuple(weighted)
        cumulative = tuple(accumulate(weight for weight, _ in rows))
        options = (
            Option(symbols, binding, math.log(weight / cumulative[-1]))
            for (weight, symbols), binding in zip(rows, bindings, strict=False)
        )
        return cls(tuple(options), cumulative)


class Entry(NamedTuple):
    """A row of a lexicon: its weight, and the words of each form."""

    weight: int
    forms: dict[str, tuple[Symbol, ...]]


class Agenda(NamedTuple):
    """The symbols that are still to be told, as a linked list that branches of a search share. None is its end."""

    symbol: Symbol
    rest: "Agenda | None"

    @staticmethod
    def of(symbols: tuple[Symbol, ...], rest: "Agenda | None" = None) -> "Agenda | None":
        """The agenda of these symbols followed by the rest."""
        for symbol in reversed(symbols):
            rest = Agenda(symbol, rest)
        return rest


class Grammar:
    """A probabilistic grammar whose slots remember what they stand for.

    Args:
        rules: blocks, each of which is the name of a rule followed by its options, indented. Options are separated by
            line ends or by `|`. An option consists of words, mentions `{slot}` or `{slot.form}`, rules `<name>`, and
            nested options `[ a | b c | ]`. If it begins with an integer, this is its weight; the default is 1. A tale
            is an option of the first rule.
        lexicons: blocks, each of which is a table whose columns are separated by `|`. Its first line has the name of
            the lexicon and the names of the forms. The first column has the entries. Every entry also has the form
            `a`: the entry with its indefinite article. Entries may have a weight, as options do.
        slots: the lexicon of each slot that is not named after its lexicon. Two slots with the same lexicon never have
            the same entry.

    Blank lines, and lines that begin with `#`, are ignored.
    """

    def __init__(self, rules: str, lexicons: str, slots: Mapping[str, str]):
        blocks, tables = _blocks(rules), _blocks(lexicons)
        self.start = Rule(next(iter(blocks)))
        self.rules: dict[str, Choice] = {}
        for name, lines in blocks.items():
            self.rules[name] = Choice.of(self._options(name, iter(" | ".join(lines).split())))
        self.lexicons = dict(self._lexicon(header, rows) for header, rows in tables.items())
        self.slots = {name: name for name in self.lexicons} | dict(slots)
        self._peers = {
            slot: tuple(peer for peer in self.slots if peer != slot and self.slots[peer] == self.slots[slot])
            for slot in self.slots
        }
        # These choices are needed repeatedly.
        self._remembered_choice = cache(self._remembered)
        self._undrawn_choice = cache(self._undrawn)

    def choice(self, symbol: Mention | Rule, memory: Memory) -> Choice:
        """The ways to replace a symbol, given the memory. A slot that is remembered has only one."""
        if isinstance(symbol, Rule):
            return self.rules[symbol.name]
        if symbol.slot in memory:
            return self._remembered_choice(symbol, memory[symbol.slot])
        taken = tuple(memory[peer] for peer in self._peers[symbol.slot] if peer in memory)
        return self._undrawn_choice(symbol, taken)

    def draw(self, rng: random.Random) -> tuple[str, float]:
        """Draws a tale: its text and its log-probability (nats)."""
        words: list[str] = []
        memory: dict[str, str] = {}
        agenda: list[Symbol] = [self.start]
        log_p = 0.0
        while agenda:
            symbol = agenda.pop()
            if isinstance(symbol, str):
                words.append(symbol)
                continue
            choice = self.choice(symbol, memory)
            if len(choice.options) == 1:
                option = choice.options[0]
            else:
                option = choice.options[bisect(choice.cumulative, rng.random() * choice.cumulative[-1])]
                log_p += option.log_p
            if option.binding:
                memory[option.binding[0]] = option.binding[1]
            agenda.extend(reversed(option.symbols))
        return " ".join(words), log_p

    def derivations(self, text: str) -> Iterator[float]:
        """Yields the log-probability (nats) of every sequence of choices that generates this text.

        The search follows every option that the next word allows. A wrong option is ruled out a few words later.
        """
        words = text.split(" ") if text else []
        pending: list[tuple[Agenda | None, int, Memory, float]] = [(Agenda(self.start, None), 0, {}, 0.0)]
        while pending:
            agenda, position, memory, log_p = pending.pop()
            word = words[position] if position < len(words) else None
            if agenda is None:
                if word is None:
                    yield log_p
            elif isinstance(agenda.symbol, str):
                if agenda.symbol == word:
                    pending.append((agenda.rest, position + 1, memory, log_p))
            else:
                for symbols, binding, option_log_p in self.choice(agenda.symbol, memory).options:
                    if symbols and isinstance(symbols[0], str) and symbols[0] != word:
                        continue  # most options are ruled out here, at almost no cost
                    known = {**memory, binding[0]: binding[1]} if binding else memory
                    pending.append((Agenda.of(symbols, agenda.rest), position, known, log_p + option_log_p))

    def log_probability(self, text: str) -> float:
        """The log-probability (nats) of a text under the grammar, its end included; -inf if it is not a tale."""
        found = list(self.derivations(text))
        if not found:
            return -math.inf
        top = max(found)
        return top + math.log(math.fsum(math.exp(log_p - top) for log_p in found))

    def _remembered(self, mention: Mention, entry: str) -> Choice:
        return Choice.of([(1, self.lexicons[self.slots[mention.slot]][entry].forms[mention.form])])

    def _undrawn(self, mention: Mention, taken: tuple[str, ...]) -> Choice:
        lexicon = self.lexicons[self.slots[mention.slot]]
        free = {name: entry for name, entry in lexicon.items() if name not in taken}
        return Choice.of(
            ((entry.weight, entry.forms[mention.form]) for entry in free.values()),
            ((mention.slot, name) for name in free),
        )

    def _lexicon(self, header: str, rows: list[str]) -> tuple[str, dict[str, Entry]]:
        name, *forms = _cells(header)
        entries = {}
        for row in rows:
            first, *others = _cells(row)
            [(weight, words)] = self._options(name, iter(first.split()))
            entry = " ".join(map(str, words))
            texts = {"": entry, "a": ("an " if entry[0] in "aeiou" else "a ") + entry}
            texts |= dict(zip(forms, others, strict=True))
            parsed = {form: self._options(name, iter(text.split())) for form, text in texts.items()}
            entries[entry] = Entry(weight, {form: symbols for form, [(_, symbols)] in parsed.items()})
        return name, entries

    def _options(self, owner: str, words: Iterator[str]) -> list[tuple[int, tuple[Symbol, ...]]]:
        """Reads options and their weights, up to a closing bracket or the end.

        Nested options become a separate rule, named after `owner`.
        """
        options: list[list[Symbol]] = [[]]
        for word in words:
            if word == "]":
                break
            elif word == "|":
                options.append([])
            elif word == "[":
                inner = f"{owner}[{len(self.rules)}]"
                self.rules[inner] = Choice.of(self._options(inner, words))
                options[-1].append(Rule(inner))
            elif word.startswith("{"):
                slot, _, form = word[1:-1].partition(".")
                options[-1].append(Mention(slot, form))
            else:
                options[-1].append(Rule(word[1:-1]) if word.startswith("<") else word)
        return [_weighed(symbols) for symbols in options]


def _blocks(text: str) -> dict[str, list[str]]:
    """The blocks of a grammar's source: each unindented line and the indented lines below it."""
    blocks: dict[str, list[str]] = {}
    header = ""
    for line in text.split("\n"):
        if line.startswith(" "):
            blocks[header].append(line.strip())
        elif line and not line.startswith("#"):
            header = line
            blocks[header] = []
    return blocks


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")]


def _weighed(symbols: list[Symbol]) -> tuple[int, tuple[Symbol, ...]]:
    """The weight with which an option begins, by default 1, and the rest of the option."""
    if symbols and isinstance(symbols[0], str) and symbols[0].isdecimal():
        return int(symbols[0]), tuple(symbols[1:])
    return 1, tuple(symbols)


@cache
def tale_grammar() -> Grammar:
    """The grammar of the tales, compiled on first use."""
    return Grammar(RULES, LEXICONS, SLOTS)


def log_probability(tale: str) -> float:
    """The exact log-probability (nats) of a tale, its end included, given its text. It is -inf for any other text."""
    return tale_grammar().log_probability(tale)


class Stories:
    """A corpus of generated tales: tale i of a split is a pure function of (seed, split, i).

    Validation and test each have a tenth as many tales as training, and at most `MAX_HELD_OUT`.

    Args:
        num_train: the number of tales for training, at least 1.
        seed: the seed with which tales are drawn.
    """

    def __init__(self, num_train: int, seed: int):
        held_out = min(MAX_HELD_OUT, math.ceil(num_train / 10))
        self.sizes: dict[Split, int] = {"train": num_train, "valid": held_out, "test": held_out}
        self.seed = seed
        content = json.dumps([DRAWING, RULES, LEXICONS, SLOTS, num_train, seed])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def documents(self, split: Split) -> Iterator[str]:
        """Yields the tales of a split. Each is drawn with its own seed, a hash that is the same in all versions."""
        for index in range(self.sizes[split]):
            digest = hashlib.sha256(f"{self.seed}/{split}/{index}".encode()).digest()
            yield tale_grammar().draw(random.Random(int.from_bytes(digest)))[0]

    def floor(self, split: Split) -> float:
        """The total negative log-probability (nats) of the tales of a split, ends included.

        It is the loss of the distribution that generates the tales, so no model has a lower loss in expectation.
        """
        return -math.fsum(map(log_probability, self.documents(split)))
