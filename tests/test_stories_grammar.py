"""The stories' grammar itself: that every choice can be read back from the text, and that its words are plain."""

import itertools
import random
import re
from collections.abc import Iterable, Iterator

from minigpt_jax.corpora.stories import MAX_WORDS, Agenda, Grammar, Mention, Rule, Stories, Symbol, tale_grammar


def longest(symbol: Symbol) -> int:
    """The most words that a symbol can stand for; an upper bound, as it takes each mention at its longest."""
    grammar = tale_grammar()
    if isinstance(symbol, Rule):
        return max(sum(map(longest, option.symbols)) for option in grammar.rules[symbol.name].options)
    if isinstance(symbol, Mention):
        entries = grammar.lexicons[grammar.slots[symbol.slot]].values()
        return max(sum(map(longest, entry.forms[symbol.form])) for entry in entries)
    return 1


def all_symbols() -> Iterator[Symbol]:
    grammar = tale_grammar()
    for choice in grammar.rules.values():
        for option in choice.options:
            yield from option.symbols
    for lexicon in grammar.lexicons.values():
        for entry in lexicon.values():
            yield from itertools.chain.from_iterable(entry.forms.values())


def next_words(grammar: Grammar, agenda: Agenda | None, memory: dict[str, str]) -> Iterator[tuple[str | None, tuple]]:
    """Every word that can come next (None is the end), with what is then left to tell."""
    if agenda is None:
        yield None, ()
    elif isinstance(agenda.symbol, str):
        yield agenda.symbol, (agenda.rest, memory)
    else:
        for option in grammar.choice(agenda.symbol, memory).options:
            known = memory | dict([option.binding] if option.binding else [])
            yield from next_words(grammar, Agenda.of(option.symbols, agenda.rest), known)


def confused(grammar: Grammar, options: Iterable[tuple[int, tuple]], words: int) -> bool:
    """Whether two of the options can go on with the same words for so long."""
    if words == 0:
        return True
    by_word: dict[str | None, list[tuple[int, tuple]]] = {}
    for number, state in options:
        for word, after in next_words(grammar, *state):
            by_word.setdefault(word, []).append((number, after))
    return any(
        len({number for number, _ in same}) > 1 and (word is None or confused(grammar, same, words - 1))
        for word, same in by_word.items()
    )


def choice_points(grammar: Grammar, rng: random.Random) -> Iterator[tuple[Mention | Rule, Agenda | None, dict]]:
    """The open choices of a tale in the making: what is chosen, what is told after it, and what is known by then."""
    agenda: Agenda | None = Agenda(grammar.start, None)
    memory: dict[str, str] = {}
    while agenda is not None:
        if isinstance(agenda.symbol, str):
            agenda = agenda.rest
            continue
        options = grammar.choice(agenda.symbol, memory).options
        if len(options) > 1:
            yield agenda.symbol, agenda.rest, memory
        option = rng.choice(options)  # not by weight: rare places matter as much
        memory |= dict([option.binding] if option.binding else [])
        agenda = Agenda.of(option.symbols, agenda.rest)


def undecided(grammar: Grammar, tales: int, words: int = 12) -> set[str]:
    """The rules and slots whose options a reader could not tell apart by their next words."""
    found, seen = set(), set()
    for seed in range(tales):
        for symbol, rest, memory in choice_points(grammar, random.Random(seed)):
            if (symbol, rest, frozenset(memory)) in seen:
                continue
            seen.add((symbol, rest, frozenset(memory)))
            options = []
            for number, option in enumerate(grammar.choice(symbol, memory).options):
                known = memory | dict([option.binding] if option.binding else [])
                options.append((number, (Agenda.of(option.symbols, rest), known)))
            if confused(grammar, options, words):
                found.add(".".join(symbol))
    return found


def test_every_tale_is_told_in_one_way():
    for tale in Stories(400, seed=4).documents("train"):
        assert len(list(tale_grammar().derivations(tale))) == 1, tale


def test_every_choice_can_be_read_back_from_the_next_words():
    """At every choice on the way of many tales, no two options can go on alike, whatever is drawn after them.

    So texts that part there have one derivation each, those that no one has sampled too.
    """
    assert not undecided(tale_grammar(), tales=400)


def test_a_choice_that_cannot_be_read_back_is_found():
    assert undecided(Grammar("tale\n    <x> c\nx\n    a b\n    a [ b | c ]", "", {}), tales=9) == {"x"}
    # Two friends of one sex: "she" does not say who is meant.
    assert undecided(Grammar("tale\n    {name.he} ran .", "name | he\n    mia | she\n    ann | she", {}), tales=1) == {
        "name.he"
    }


def test_every_word_of_the_grammar_is_plain():
    words = {symbol for symbol in all_symbols() if isinstance(symbol, str)}
    assert all(re.fullmatch(r'[a-z]+|[.,!?"]', word) for word in words), words
    assert len(words) > 500


def test_every_mention_and_rule_of_the_grammar_exists_and_every_rule_is_used():
    grammar = tale_grammar()
    used = {grammar.start.name}
    for symbol in all_symbols():
        if isinstance(symbol, Rule):
            used.add(symbol.name)
        elif isinstance(symbol, Mention):
            for entry in grammar.lexicons[grammar.slots[symbol.slot]].values():
                assert symbol.form in entry.forms, symbol
    assert used == grammar.rules.keys()


def test_no_tale_is_longer_than_promised():
    assert longest(tale_grammar().start) <= MAX_WORDS
    lengths = [len(tale.split(" ")) for tale in Stories(400, seed=4).documents("train")]
    assert 50 < min(lengths) < max(lengths) <= MAX_WORDS
