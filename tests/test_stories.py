"""Generated stories: probabilities against hand-counted and exhaustive truth, and what the text promises."""

import functools
import hashlib
import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
from tokenizers import normalizers, pre_tokenizers

from minigpt_jax.corpora.base import SPLITS
from minigpt_jax.corpora.stories import (
    MAX_HELD_OUT,
    Agenda,
    Choice,
    Grammar,
    Memory,
    Mention,
    Rule,
    Stories,
    log_probability,
    tale_grammar,
)
from minigpt_jax.corpora.stories_grammar import RULES
from minigpt_jax.corpora.stories_words import LEXICONS, SLOTS

# A weighted name, a friend who is somebody else, a pronoun, alternatives, an optional word and a choice of ends.
TOY_RULES = """
tale
    3 {hero} met {friend} [ 2 today | ] . <end>
# a remark
    a [ b | c ] .
end
    {hero.he} ran .
    {friend.he} [ sat | 4 [ lay | fell ] ] .
"""
TOY_LEXICONS = """
name | he
    2 tom | he
    mia | she
    ann | she
"""
TOY_SLOTS = {"hero": "name", "friend": "name"}


@functools.cache
def sample(size: int = 400) -> list[tuple[str, float]]:
    """Tales with the log-probability that the drawing noted."""
    return [tale_grammar().draw(random.Random(index)) for index in range(size)]


def toy_probabilities() -> dict[str, float]:
    """Every text of the toy grammar, with its probability counted by hand."""
    weights, he = {"tom": 2, "mia": 1, "ann": 1}, {"tom": "he", "mia": "she", "ann": "she"}
    texts = defaultdict(float, {"a b .": 1 / 8, "a c .": 1 / 8})
    for hero, friend in itertools.permutations(weights, 2):
        pair = 3 / 4 * weights[hero] / 4 * weights[friend] / (4 - weights[hero])
        for when, p in [("today ", 2 / 3), ("", 1 / 3)]:
            start = f"{hero} met {friend} {when}. "
            texts[start + f"{he[hero]} ran ."] += pair * p / 2
            texts[start + f"{he[friend]} sat ."] += pair * p / 2 / 5
            texts[start + f"{he[friend]} lay ."] += pair * p / 2 * 4 / 5 / 2
            texts[start + f"{he[friend]} fell ."] += pair * p / 2 * 4 / 5 / 2
    return texts


def texts_of(grammar: Grammar, agenda: Agenda | None, memory: dict[str, str]) -> Iterator[str]:
    """Every text that can be told, once for each way to tell it."""
    if agenda is None:
        yield ""
    elif isinstance(agenda.symbol, str):
        for text in texts_of(grammar, agenda.rest, memory):
            yield f"{agenda.symbol} {text}".strip()
    else:
        for option in grammar.choice(agenda.symbol, memory).options:
            known = memory | dict([option.binding] if option.binding else [])
            yield from texts_of(grammar, Agenda.of(option.symbols, agenda.rest), known)


# Probabilities


def test_toy_probabilities_are_those_counted_by_hand():
    grammar = Grammar(TOY_RULES, TOY_LEXICONS, TOY_SLOTS)
    expected = toy_probabilities()
    assert math.fsum(expected.values()) == pytest.approx(1)
    assert set(texts_of(grammar, Agenda(grammar.start, None), {})) == set(expected)
    for text, p in expected.items():
        assert grammar.log_probability(text) == pytest.approx(math.log(p), abs=1e-12), text


def test_toy_texts_are_drawn_as_often_as_their_probabilities_say():
    grammar, size = Grammar(TOY_RULES, TOY_LEXICONS, TOY_SLOTS), 20_000
    rng = random.Random(0)
    drawn = Counter(grammar.draw(rng)[0] for _ in range(size))
    expected = {text: size * p for text, p in toy_probabilities().items()}
    assert drawn.keys() <= expected.keys()
    chi_square = sum((drawn[text] - mean) ** 2 / mean for text, mean in expected.items())
    freedom = len(expected) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_a_text_with_two_derivations_has_the_sum_of_their_probabilities():
    grammar = Grammar("tale\n    a b\n    a [ b | c ]", "", {})
    assert sorted(map(math.exp, grammar.derivations("a b"))) == pytest.approx([1 / 4, 1 / 2])
    assert math.exp(grammar.log_probability("a b")) == pytest.approx(3 / 4)


@pytest.mark.parametrize("rule", ["opening", "habit", "one_day", "lost_cry", "secret_away", "best_friend", "the_end"])
def test_probabilities_of_all_that_a_rule_can_tell_add_up_to_one(rule: str):
    # What comes before a line tells who is who; a line by itself would have to guess "his" from "her".
    known = {} if rule in ("opening", "one_day", "the_end") else {"hero": "tom", "thing": "bell", "friend": "mia"}

    class Knowing(Grammar):
        def choice(self, symbol: Mention | Rule, memory: Memory) -> Choice:
            return super().choice(symbol, {**known, **memory})

    grammar = Knowing(f"start\n    <{rule}>{RULES}", LEXICONS, SLOTS)
    told = Counter(texts_of(grammar, Agenda(grammar.start, None), {}))
    assert max(told.values()) == 1
    assert math.fsum(math.exp(grammar.log_probability(text)) for text in told) == pytest.approx(1, abs=1e-9)


def test_reading_a_tale_finds_the_probability_with_which_it_was_drawn():
    for tale, log_p in sample():
        assert log_probability(tale) == pytest.approx(log_p, abs=1e-9), tale


def test_frequencies_in_tales_agree_with_the_weights():
    tales, size = list(Stories(4000, seed=1).documents("train")), 4000
    names = tale_grammar().lexicons["name"]
    heroes = Counter(re.findall(r"(?:named|called|name was|story of|tale of) (\w+)", tale)[0] for tale in tales)
    assert heroes.keys() == names.keys()
    total = sum(entry.weight for entry in names.values())
    shares = [(heroes[name], entry.weight / total) for name, entry in names.items()]
    # <opening> in 6 of 8 tales and 5 of its 10 times; <habit> in 3 of 8 and "every" in 3 of its 8 times.
    shares.append((sum(tale.startswith("once upon a time , there was ") for tale in tales), 6 / 8 * 5 / 10))
    shares.append((sum(bool(re.match(r"[^.?]* [.?] every \w+ , s?he", tale)) for tale in tales), 3 / 8 * 3 / 8))
    for seen, p in shares:
        assert abs(seen - size * p) < 4.5 * math.sqrt(size * p * (1 - p))


def test_floor_is_the_sum_over_the_split_and_no_other_weights_come_below_it():
    stories = Stories(1000, seed=3)
    tales = list(stories.documents("valid"))
    floor = stories.floor("valid")
    assert floor == pytest.approx(-sum(map(log_probability, tales)))
    rules, lexicons = (re.sub(r"(?<=\s)\d+ ", "", text) for text in (RULES, LEXICONS))
    unweighted = Grammar(rules, lexicons, SLOTS)
    other = -sum(map(unweighted.log_probability, tales))
    assert floor < other < math.inf


# Reading


@pytest.mark.parametrize(
    "text",
    ["", " ", "the end .", "once upon a time", "a text that is no tale .", "\n", "x" * 10_000],
)
def test_other_texts_have_no_probability(text: str):
    assert log_probability(text) == -math.inf


def test_damaged_tales_have_no_probability():
    for tale, _ in sample(40):
        words = tale.split(" ")
        for position in range(len(words)):
            assert log_probability(" ".join([*words[:position], "zebra", *words[position + 1 :]])) == -math.inf
        for damaged in (f"{tale} ", f" {tale}", tale.upper(), tale.replace(" ", "  ", 1), f"{tale} {tale}", tale[:-2]):
            assert log_probability(damaged) == -math.inf, damaged


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ("sees the blue whistle", "sees the red whistle"),
        ("thinks of ben", "thinks of tom"),
        ("thinks of ben", "thinks of mia"),
        ("by the river , ben", "by the lake , ben"),
        ("flapped and pulled", "dug with quick paws"),
        ("his pocket", "her pocket"),
        ("an owl named ben", "a duck named ben"),
        ("an owl named ben", "a owl named ben"),
        ("an owl named ben", "an owl named mia"),
    ],
)
def test_what_was_told_before_binds_what_comes_later(told: str, wrong: str):
    tale = (
        "once upon a time , there was a kind duck named mia . she had a blue whistle , and it could be heard for miles "
        ". one day , it fell from her bag by the river . luckily , an owl named ben was passing by . back by the river "
        ", ben watched from a high branch until it turned up between two smooth stones . to this day , whenever mia "
        "sees the blue whistle , she thinks of ben . the end ."
    )
    rescue = (
        "long ago , there was a kind duck called jack . one day , he went for a walk in the forest . there an owl "
        'named ben was stuck in the mud . " hold still , " said jack . jack flapped and pulled until ben was free . '
        "ben never went near the mud again , and gave jack a red hat . to this day , whenever jack sees the red hat , "
        "he thinks of ben ."
    )
    pocket = tale.replace("mia", "tom").replace("she ", "he ").replace("her bag", "his pocket")
    texts = [text for text in (tale, rescue, pocket) if told in text]
    assert texts
    for text in texts:
        assert log_probability(text) > -math.inf
        assert log_probability(text.replace(told, wrong)) == -math.inf


# The text


def test_hero_friend_place_and_thing_come_back():
    lexicons, size = tale_grammar().lexicons, 2000
    shown, returns = Counter(), Counter()
    for tale in Stories(size, seed=2).documents("train"):
        words = Counter(tale.split(" "))
        names = [name for name in lexicons["name"] if name in words]
        assert len(names) == 2, tale
        returns["hero and friend"] += all(words[name] > 1 for name in names)
        things = [thing for thing in lexicons["thing"] if thing in words]
        shown["thing"] += bool(things)
        returns["thing"] += any(words[thing] > 1 for thing in things)
        for place, entry in lexicons["place"].items():
            said = [f"{word} the {place}" for word in ("to", "past", "from", "of", "near", "showed")]
            said += [" ".join(map(str, entry.forms[form])) for form in ("in", "spot", "view")]
            mentions = sum(tale.count(text) for text in said)
            shown["place"] += mentions > 0
            returns["place"] += mentions > 1
        # Pronouns are the hero's, who is never both.
        assert not ({"he", "him", "his"} & words.keys() and {"she", "her"} & words.keys()), tale
    assert returns["hero and friend"] > 0.8 * size
    assert shown["thing"] > 0.75 * size
    assert shown["place"] > 0.75 * size
    assert returns["thing"] > 0.6 * shown["thing"]
    assert returns["place"] > 0.5 * shown["place"]


def test_text_survives_lower_case_and_bert_splitting():
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    for tale, _ in sample():
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(tale))]
        assert " ".join(pieces) == tale


def test_articles_agree():
    for tale, _ in sample():
        assert not re.search(r"\ba [aeiou]\w*|\ban [^aeiou\s]", tale), tale


# The corpus


def test_splits_are_disjoint_and_no_tale_repeats():
    stories = Stories(5000, seed=0)
    tales = [tale for split in SPLITS for tale in stories.documents(split)]
    assert len(tales) == 5000 + 2 * MAX_HELD_OUT == len(set(tales))


def test_a_tale_depends_on_seed_split_and_index_alone():
    first, more = Stories(20, seed=5), Stories(30, seed=5)
    for split in SPLITS:
        tales = list(first.documents(split))
        assert tales == list(first.documents(split))
        assert tales == list(more.documents(split))[: len(tales)]
        assert tales != list(Stories(20, seed=6).documents(split))
    assert [len(list(first.documents(split))) for split in SPLITS] == [20, 2, 2]


def test_documents_are_streamed():
    assert next(Stories(10**12, seed=0).documents("train"))


def test_fingerprint_tells_corpora_apart():
    prints = {Stories(n, seed).fingerprint for n, seed in [(10, 0), (11, 0), (10, 1), (10, -1)]}
    assert len(prints) == 4
    assert Stories(10, 0).fingerprint == Stories(10, 0).fingerprint
    assert all(re.fullmatch("[0-9a-f]{64}", fingerprint) for fingerprint in prints)


def test_tales_are_the_same_everywhere_and_always():
    """Pinned: a change here means that every earlier run was trained on another corpus.

    If the grammar was meant to change, put the new figures in; if numbers become tales in another way, raise `DRAWING`.
    """
    stories = Stories(1000, seed=0)
    tales = "\n".join(tale for split in SPLITS for tale in stories.documents(split))
    assert next(stories.documents("train")) == (
        "once upon a time , there was a kind fox named ben . one spring morning , the queen held a painting "
        'contest beside the lake . the winner would get a yellow cup . " nobody can beat me , " laughed lily '
        "the bear . but on the way lily was tangled in the thorns . ben dug with quick paws until lily was "
        "free . they came last , but what did it matter ? that night , the fox and the bear ate some warm "
        "bread under the moon . the end ."
    )
    assert hashlib.sha256(tales.encode()).hexdigest()[:16] == "9cab5c17fc74ff1d"
    assert stories.fingerprint[:16] == "3f13c82b70a319f0"
    assert stories.floor("valid") == pytest.approx(4268.637557403451, abs=1e-6)
