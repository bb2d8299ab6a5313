"""A streamed text is the whole one, whatever its tokens are, and however many of them come at a time."""

import random

import pytest
from test_generate import PIECES

from minigpt_jax import tokenizer
from minigpt_jax.generate import GenerationSettings
from minigpt_jax.generate.generation import Generation
from minigpt_jax.generate.text_stream import TextStream
from minigpt_jax.generate.texts import StopScanner, stop_length
from minigpt_jax.tokenizer import Tokenizer, WordPiece

WORDS = WordPiece([*PIECES, "don", "gives", "'", '"', ",", "-", "—", "日", "本"])
TOKENIZERS = {"words": WORDS, "bytes": tokenizer.byte()}


def streamed(decoder: Tokenizer, tokens: list[int], stop: list[str], rng: random.Random) -> tuple[str, str]:
    """The pieces of a stream, joined, and the text of the whole."""
    settings = GenerationSettings(stop=stop)
    stream, scanner = TextStream(decoder, settings), StopScanner.of(settings, decoder.decode)
    joined, count, finished, text = "", 0, False, ""
    while not finished:
        count = min(len(tokens), count + rng.randint(1, 3))
        finished, text = count == len(tokens), decoder.decode(tokens[:count])
        if scanner is not None and scanner.scan(tokens[:count]):
            finished, text = True, scanner.text
        joined += stream.piece(Generation("", text, text, tokens[:count], [], "length", 0.0), finished)
    return joined, text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_texts(name: str):
    decoder, rng = TOKENIZERS[name], random.Random(0)
    letters = ["日", "本", "é", "😀", " ", "a", "'", '"', "em", "\n"]
    for _ in range(1000):
        if name == "words":
            tokens = [rng.randrange(3, len(decoder)) for _ in range(rng.randint(1, 14))]
        else:
            tokens = decoder.encode_batch(["".join(rng.choices(letters, k=8))])[0]
        whole = decoder.decode(tokens)
        begin = rng.randrange(len(whole))
        for stop in ([], [whole[begin : begin + rng.randint(1, 3)]]):
            joined, text = streamed(decoder, tokens, stop, rng)
            assert joined == text, (stop, [decoder.piece(token) for token in tokens])


@pytest.mark.parametrize(
    ("name", "text", "stop"),
    [
        ("words", "the cat gives 'em a cat", []),  # the space before the apostrophe depends on all of the next word
        ("bytes", "aaa 日本語", ["日本"]),  # a stop whose second character comes byte by byte
    ],
)
def test_one_token_at_a_time(name: str, text: str, stop: list[str]):
    decoder, one = TOKENIZERS[name], random.Random(0)
    one.randint = lambda low, high: 1  # pyright: ignore[reportAttributeAccessIssue]
    tokens = decoder.encode_batch([text])[0]
    joined, whole = streamed(decoder, tokens, stop, one)
    assert joined == whole == (text if not stop else text.split(stop[0])[0])


@pytest.mark.parametrize(
    ("tokens", "sequences", "length"),
    [
        ([3, 4, 5], [[4, 5]], 2),
        ([3, 4, 5], [[4, 5], [3, 4, 5, 6]], 2),  # the longer one has only begun
        ([3, 4, 5], [[5], [3, 4, 5]], 3),
        ([5], [[4, 5]], 0),
        ([], [[4]], 0),
    ],
)
def test_the_stop_that_tokens_end_in(tokens: list[int], sequences: list[list[int]], length: int):
    assert stop_length(tokens, sequences) == length
