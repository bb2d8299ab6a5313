"""The built-in corpus: little tales drawn from a seeded probabilistic grammar, and their exact probabilities.

The grammar is data (`stories_grammar`, `stories_words`): rules whose options are lines of words, of mentions `{slot}`
and of other rules. What a slot stands for (the hero's name, the place, the lost thing) is drawn where the tale first
mentions it and remembered from there on. So a tale is nothing but a chain of choices, and one description of them,
`Grammar.choice`, serves both ways: `draw` picks an option, `derivations` follows the options that the text allows.
The two cannot disagree, which makes the corpus a test bench: the entropy floor of held-out tales is known exactly.
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

MAX_WORDS = 126  # of a tale: with a start and an end it fits a window of 128
MAX_HELD_OUT = 500  # tales in each of validation and test: their mean loss is known to half a percent
DRAWING = 1  # the version of how numbers become tales; part of the fingerprint


class Mention(NamedTuple):
    """A place in a line where a slot's entry is said, in one of its forms ("" is the entry itself)."""

    slot: str
    form: str


class Rule(NamedTuple):
    """A place in a line where one of a rule's options is told."""

    name: str


Symbol = str | Mention | Rule  # a str is a word of the tale
Memory = Mapping[str, str]  # slot -> the entry drawn for it


class Option(NamedTuple):
    """One way to replace a symbol: by these symbols, remembering this entry, with this log-probability."""

    symbols: tuple[Symbol, ...]
    binding: tuple[str, str] | None
    log_p: float


@dataclass(frozen=True)
class Choice:
    """The options of a symbol, with cumulative integer weights: drawing is exact on every platform."""

    options: tuple[Option, ...]
    cumulative: tuple[int, ...]

    @classmethod
    def of(
        cls,
        weighted: Iterable[tuple[int, tuple[Symbol, ...]]],
        bindings: Iterable[tuple[str, str] | None] = repeat(None),
    ) -> "Choice":
        """The choice among symbols with these weights, each remembered by the binding at its place."""
        rows = tuple(weighted)
        cumulative = tuple(accumulate(weight for weight, _ in rows))
        options = (
            Option(symbols, binding, math.log(weight / cumulative[-1]))
            for (weight, symbols), binding in zip(rows, bindings, strict=False)
        )
        return cls(tuple(options), cumulative)


class Entry(NamedTuple):
    """A lexicon's row: its weight, and what is said in each form."""

    weight: int
    forms: dict[str, tuple[Symbol, ...]]


class Agenda(NamedTuple):
    """What is left to tell, as a linked list that the branches of a search share; None is its end."""

    symbol: Symbol
    rest: "Agenda | None"

    @staticmethod
    def of(symbols: tuple[Symbol, ...], rest: "Agenda | None" = None) -> "Agenda | None":
        """These symbols, and then the rest."""
        for symbol in reversed(symbols):
            rest = Agenda(symbol, rest)
        return rest


class Grammar:
    """A probabilistic grammar whose slots have a memory.

    Args:
        rules: blocks of a name and, indented, its options, parted by line ends or `|`: words, mentions `{slot}` or
            `{slot.form}`, rules `<name>`, and options within the option, `[ a | b c | ]`. One that opens with an
            integer has that weight instead of 1. A tale is an option of the first rule.
        lexicons: blocks of a table, its columns parted by `|`. The first line gives the lexicon's name and the names
            of the forms after the first column, which is the entry itself; every entry has a form `a` too, itself with
            its indefinite article. Entries may have a weight as options do.
        slots: slot -> the lexicon that it draws from, for slots that are not named after their lexicon. Two slots of
            one lexicon never hold the same entry.

    Blank lines and lines that open with `#` are left out.
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
        # These are asked for again and again.
        self._remembered_choice = cache(self._remembered)
        self._undrawn_choice = cache(self._undrawn)

    def choice(self, symbol: Mention | Rule, memory: Memory) -> Choice:
        """The ways to replace a symbol after what has been told. A slot that is remembered has one way."""
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
        """The log-probability (nats) of every chain of choices that tells this text, by following the text.

        The search goes on with each option that the next word allows; a wrong one dies a few words later.
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
                        continue  # most options end here, before they cost anything
                    known = {**memory, binding[0]: binding[1]} if binding else memory
                    pending.append((Agenda.of(symbols, agenda.rest), position, known, log_p + option_log_p))

    def log_probability(self, text: str) -> float:
        """The log-probability (nats) of a text under the grammar, its end included; -inf where it is no tale."""
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

        Options in brackets become a rule of their own, named after its owner.
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
    """The blocks of a grammar's source: each unindented line with the indented ones below it."""
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
    """The weight that an option opens with, 1 by default, and the rest of it."""
    if symbols and isinstance(symbols[0], str) and symbols[0].isdecimal():
        return int(symbols[0]), tuple(symbols[1:])
    return 1, tuple(symbols)


@cache
def tale_grammar() -> Grammar:
    """The grammar of the tales, compiled on first use."""
    return Grammar(RULES, LEXICONS, SLOTS)


def log_probability(tale: str) -> float:
    """The exact log-probability (nats) of a tale, its end included, from its text alone; -inf for any other text."""
    return tale_grammar().log_probability(tale)


class Stories:
    """A corpus of generated tales: tale i of a split is a pure function of (seed, split, i).

    Validation and test hold a tenth as many tales as training, at most `MAX_HELD_OUT`.

    Args:
        num_train: tales to train on, at least 1.
        seed: draws other tales from the same grammar.
    """

    def __init__(self, num_train: int, seed: int):
        held_out = min(MAX_HELD_OUT, math.ceil(num_train / 10))
        self.sizes: dict[Split, int] = {"train": num_train, "valid": held_out, "test": held_out}
        self.seed = seed
        content = json.dumps([DRAWING, RULES, LEXICONS, SLOTS, num_train, seed])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def documents(self, split: Split) -> Iterator[str]:
        """The tales of a split, one at a time. Each has a generator of its own, seeded by a hash that never changes."""
        for index in range(self.sizes[split]):
            digest = hashlib.sha256(f"{self.seed}/{split}/{index}".encode()).digest()
            yield tale_grammar().draw(random.Random(int.from_bytes(digest)))[0]

    def floor(self, split: Split) -> float:
        """The total negative log-probability (nats) of a split's tales, ends included.

        No model has a lower loss in expectation: this is the loss of the distribution that the tales come from.
        """
        return -math.fsum(map(log_probability, self.documents(split)))
