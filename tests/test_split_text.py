"""The text of each token: all together are the text, whatever the spacing around a token and however it is cut."""

import pytest
from test_generate import PIECES

from minigpt_jax import tokenizer
from minigpt_jax.generate.split_text import TextSplitter, offsets, text_after
from minigpt_jax.tokenizer import WordPiece

WORDS = WordPiece([*PIECES, "don", "'", '"', "said", ","])


def words(text):
    return WORDS.encode_batch([text])[0]


@pytest.mark.parametrize(
    ("prompt", "new", "pieces"),
    [
        ("the", "a . the", [" a", ".", " the"]),
        ("", "the the", ["the", " the"]),
        ("the", "cat", [" c", "a", "t"]),
        # The apostrophe stands apart until the t comes.
        ("the", "don't", [" don", "'", "t"]),
        ('said, "', "the", ["the"]),
    ],
)
def test_pieces_of_words(prompt, new, pieces):
    before, tokens = words(prompt), words(new)
    splitter = TextSplitter(WORDS.decode, before)
    for end in range(len(tokens) + 1):  # as they arrive
        head, found = splitter.split(tokens[:end])
        assert head + "".join(found) == WORDS.decode([*before, *tokens[:end]])
        assert len(found) == end
    assert found == pieces


def test_characters_of_several_tokens_and_spaces():
    bytes_ = tokenizer.byte()
    tokens = bytes_.encode_batch(["é a\n\n"])[0]
    splitter = TextSplitter(bytes_.decode, bytes_.encode_batch(["x"])[0])
    for end in range(len(tokens)):
        splitter.split(tokens[:end])
    assert splitter.split(tokens) == ("x", ["", "é", " ", "a", "\n", "\n"])


def test_tokens_without_text():
    assert TextSplitter(WORDS.decode, words("the")).split([0, *words("a"), 2]) == ("the", ["", " a", ""])
    assert text_after(WORDS.decode, words("the"), words("a")[0]) == " a"


@pytest.mark.parametrize("begin", [0, 1, 40])
def test_offsets_are_lengths_of_the_text_before(begin):
    """Of more tokens than are decoded at once. A character of several tokens begins where its first token does."""
    for decoder, text in (
        (WORDS, "the cat said, the cat don't. " * 20),
        (tokenizer.byte(), "é a\n 日本 " * 20),
    ):
        tokens = decoder.encode_batch([text])[0]
        found = offsets(decoder.decode, tokens[:begin], tokens[begin:])
        expected = [len(decoder.decode(tokens[:end]).rstrip("\ufffd")) for end in range(begin, len(tokens))]
        assert found == expected
