"""GGUF files as the package gguf reads them: tensors, metadata, vocabularies; and what is refused."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the extra gguf is not installed")

import gguf
from test_export_tokenizer import KINDS, trained  # noqa: F401  a fixture
from tiny_experiment import EXPERIMENT, changed
from tiny_gguf import MODELS, PIECES, ROTARY, T, V, language_model
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Theirs

import minigpt_jax
from minigpt_jax import cli
from minigpt_jax.errors import UserError
from minigpt_jax.interchange import gguf_vocabulary, gguf_writer
from minigpt_jax.tokenizer import HuggingFace, SpecialIds, Tokenizer, WordPiece

MODERN = changed("model", norm="rmsnorm", norm_position="pre", use_bias=False, activation="relu2", qk_norm=True)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "tiny"
    minigpt_jax.run(dataclasses.replace(changed("optimizer", MODERN, ema_decay=0.5), name="modern"), path)
    return path


@pytest.fixture(scope="module")
def other_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "other"
    minigpt_jax.run(changed("train", EXPERIMENT, steps=1), path)
    return path


def written(name: str, folder: Path, dtype: Any = "float32", **more: Any) -> tuple[Any, Any]:
    lm = language_model(MODELS[name][1], **more)
    gguf_writer.write(lm, folder / "model.gguf", dtype, "tiny")
    return lm, gguf.GGUFReader(folder / "model.gguf")


def tensors(reader: Any) -> dict[str, np.ndarray]:
    """By name; of bfloat16 the bytes."""
    return {tensor.name: tensor.data for tensor in reader.tensors}


def value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def test_tensors_of_apertus(tmp_path: Path) -> None:
    lm, reader = written("apertus", tmp_path)
    found, weights = tensors(reader), lm.weights
    assert len(found) == 3 + 2 * 10
    np.testing.assert_array_equal(found["token_embd.weight"], weights["token_embedding"]["embedding"])
    np.testing.assert_array_equal(found["output.weight"], weights["token_embedding"]["embedding"])
    np.testing.assert_array_equal(found["blk.1.attn_q.weight"], weights["block_1"]["attention"]["query"]["kernel"].T)
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"], weights["block_0"]["feed_forward"]["up"]["kernel"].T)
    np.testing.assert_array_equal(
        found["blk.1.attn_k_norm.weight"], weights["block_1"]["attention"]["key_norm"]["scale"]
    )


def test_rotary_pairs_of_arcee_are_neighbours(tmp_path: Path) -> None:
    lm, reader = written("arcee", tmp_path)
    kernel = lm.weights["block_0"]["attention"]["key"]["kernel"]
    found = tensors(reader)["blk.0.attn_k.weight"]
    assert found.shape == (2 * 6, 16)
    for head in (0, 1):
        for i in range(3):
            np.testing.assert_array_equal(found[6 * head + 2 * i], kernel[:, 6 * head + i])
            np.testing.assert_array_equal(found[6 * head + 2 * i + 1], kernel[:, 6 * head + 3 + i])
    value_kernel = lm.weights["block_0"]["attention"]["value"]["kernel"]
    np.testing.assert_array_equal(tensors(reader)["blk.0.attn_v.weight"], value_kernel.T)


def test_missing_biases_are_zeros(tmp_path: Path) -> None:
    _, reader = written("starcoder2, no biases", tmp_path)
    found = tensors(reader)
    assert found["blk.0.ffn_up.bias"].shape == (24,)
    assert not any(array.any() for name, array in found.items() if name.endswith(".bias"))


@pytest.mark.parametrize(("dtype", "code", "file_type"), [("float16", "F16", 1), ("bfloat16", "BF16", 32)])
def test_types(dtype: str, code: str, file_type: int, tmp_path: Path) -> None:
    lm, reader = written("gpt2", tmp_path, dtype)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert value(reader, "general.file_type") == file_type
    assert types["blk.0.attn_qkv.weight"] == types["token_embd.weight"] == code
    assert {types[name] for name in types if "norm" in name or "bias" in name or "position" in name} == {"F32"}
    kernels = [lm.weights["block_0"]["attention"][part]["kernel"] for part in ("query", "key", "value")]
    stored = tensors(reader)["blk.0.attn_qkv.weight"]
    if dtype == "bfloat16":  # the upper halves of float32
        stored = (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(stored, np.concatenate(kernels, axis=1).T, rtol=2**-8, atol=1e-6)


def test_metadata(tmp_path: Path) -> None:
    _, reader = written("apertus", tmp_path)
    expected = {
        "general.architecture": "apertus",
        "general.name": "tiny",
        "apertus.context_length": T,
        "apertus.vocab_size": V,
        "apertus.embedding_length": 16,
        "apertus.block_count": 2,
        "apertus.feed_forward_length": 24,
        "apertus.attention.head_count": 4,
        "apertus.attention.head_count_kv": 2,
        "apertus.attention.key_length": 6,
        "apertus.attention.value_length": 6,
        "apertus.rope.dimension_count": 6,
        "apertus.rope.freq_base": 10_000.0,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.suppress_tokens": [0, 57, 58, 59, 60],
    }
    assert {key: value(reader, key) for key in expected} == expected
    assert value(reader, "apertus.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    [alpha, same] = value(reader, "xielu.alpha_p")
    assert alpha == same == pytest.approx(np.log(np.e - 1))
    _, reader = written("llama", tmp_path, layout="lines")
    assert (value(reader, "tokenizer.ggml.eos_token_id"), value(reader, "llama.rope.freq_base")) == (0, 100.0)
    assert value(reader, "tokenizer.ggml.suppress_tokens") == [2, 57, 58, 59, 60]


def test_wordpiece_marks_the_first_pieces_of_words(tmp_path: Path) -> None:
    _, reader = written("apertus", tmp_path)
    pieces, kinds = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    assert len(pieces) == len(set(pieces)) == len(kinds) == V
    assert pieces[:4] == ["[PAD]", "[UNK]", "[BOS]", "\u2581a"]
    assert [pieces[PIECES.index(one)] for one in ("##b", ".", "the")] == ["b", "\u2581.", "\u2581the"]
    assert (kinds[:4], kinds[-4:]) == ([3, 2, 3, 1], [5] * 4)


@pytest.mark.parametrize("kind", KINDS)
def test_vocabularies(kind: str, trained: dict[str, Tokenizer]) -> None:  # noqa: F811
    found = gguf_vocabulary.vocabulary(language_model(ROTARY, trained[kind]))
    names = {"bpe": "llama", "unigram": "t5", "char": "t5", "wordpiece": "bert"}
    assert found.model == names.get(kind, "gpt2")
    rows = len(trained[kind]) + V - len(PIECES)
    assert len(found.pieces) == len(set(found.pieces)) == len(found.kinds) == rows
    assert len(found.scores) in (0, rows)
    assert (found.about == gguf_vocabulary._SAME) == (kind in ("bpe", "byte_bpe", "byte"))
    if found.model == "llama":
        assert [piece for piece, one in zip(found.pieces, found.kinds, strict=True) if one == 6][65] == "<0x41>"


def of_description(model: Any, normaliser: Any = None, cut: Any = None, decoder: Any = None) -> HuggingFace:
    theirs = Theirs(model)
    if normaliser is not None:
        theirs.normalizer = normaliser
    if cut is not None:
        theirs.pre_tokenizer = cut
    if decoder is not None:
        theirs.decoder = decoder
    theirs.add_special_tokens(["<s>"])
    theirs.add_tokens(["<tool>"])
    start = theirs.token_to_id("<s>")
    return HuggingFace(theirs.to_str(), SpecialIds(start=start, line_end=start, unknown=0))


BYTES = {f"<0x{i:02X}>": i + 1 for i in range(256)}
LETTERS = {"<unk>": 0, **BYTES, "\u2581": 257, "a": 258, "b": 259, "ab": 260, "\u2581ab": 261}


def with_byte_fallback() -> HuggingFace:
    """As Llama's tokenizer."""
    model = models.BPE(LETTERS, [("a", "b"), ("\u2581", "ab")], unk_token="<unk>", byte_fallback=True)
    return of_description(
        model, normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    )


def test_byte_fallback_of_a_tokenizer_json() -> None:
    """The earlier merge has the higher score."""
    found = gguf_vocabulary.vocabulary(language_model(ROTARY, with_byte_fallback()))
    assert (found.model, found.switches["add_space_prefix"]) == ("llama", True)
    assert found.scores[260] > found.scores[261] > found.scores[0]
    assert [found.kinds[token] for token in (0, 1, 258, 262, 263)] == [2, 6, 1, 3, 4]


@pytest.mark.parametrize(
    ("pattern", "name", "equal"),
    [
        (gguf_vocabulary._WORDS % "{1,3}", "llama-bpe", True),
        (gguf_vocabulary._WORDS % "", "qwen2", True),
        (r"\s+|\w+", "gpt-2", False),
    ],
)
def test_patterns_of_a_tokenizer_json(pattern: str, name: str, equal: bool) -> None:
    alphabet = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pieces = of_description(models.BPE({**alphabet, "ab": 256}, [("a", "b")]), cut=cut, decoder=decoders.ByteLevel())
    found = gguf_vocabulary.vocabulary(language_model(ROTARY, pieces))
    assert (found.model, found.pattern, list(found.merges)) == ("gpt2", name, ["a b"])
    assert (found.about == gguf_vocabulary._SAME) == equal


@pytest.mark.parametrize(
    ("normaliser", "strips"),
    [
        (normalizers.BertNormalizer(lowercase=True), True),
        (normalizers.BertNormalizer(lowercase=True, strip_accents=False), False),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]), True),
        (normalizers.Lowercase(), False),
    ],
)
def test_accents_of_a_tokenizer_json(normaliser: Any, strips: bool) -> None:
    pieces = of_description(models.WordPiece({"[UNK]": 0, "fox": 1}, unk_token="[UNK]"), normaliser)
    switches = gguf_vocabulary.vocabulary(language_model(ROTARY, pieces)).switches
    assert (switches["normalizer.lowercase"], switches["normalizer.strip_accents"]) == (True, strips)


def test_other_tokenizers_are_refused() -> None:
    pieces = of_description(
        models.WordLevel({"<unk>": 0, "fox": 1}, unk_token="<unk>"), cut=pre_tokenizers.Whitespace()
    )
    with pytest.raises(UserError, match=r"the tokenizer\.json is a WordLevel .*take --format huggingface"):
        gguf_vocabulary.vocabulary(language_model(ROTARY, pieces))


def test_equal_pieces_get_names_of_their_own() -> None:
    """A word that starts with the mark of words, and one that continues one."""
    pieces = WordPiece(["[PAD]", "[UNK]", "[BOS]", "a", "##\u2581a", "##"])
    found = gguf_vocabulary.vocabulary(language_model(ROTARY, pieces))
    assert found.pieces[3:6] == ["\u2581a", "<unused4>", "\u2581##"]


@pytest.mark.parametrize(
    ("fields", "given", "needed"),
    [
        (
            {"pointer": 6, "convolution": 4, "head_gate": True, "qk_norm": True, "activation": "swiglu"},
            "--model.head-gate True, --model.convolution 4, --model.pointer 6; the nearest is qwen3",
            "which needs --model.no-head-gate, --model.convolution 0, --model.pointer 0: train such a model",
        ),
        ({"norm_position": "post"}, "--model.norm-position post; the nearest is", "needs --model.norm-position pre"),
        ({"activation": "gelu", "norm": "layernorm", "positions": "learned", "num_heads": 3}, "divide", "num-heads 4"),
    ],
)
def test_models_without_an_architecture_are_refused(
    fields: dict[str, Any], given: str, needed: str, tmp_path: Path
) -> None:
    lm = language_model(dataclasses.replace(ROTARY, **{"activation": "relu2", **fields}))
    with pytest.raises(UserError) as caught:
        gguf_writer.write(lm, tmp_path / "model.gguf", "float32", "tiny")
    assert given in str(caught.value)
    assert needed in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_command(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "tales.gguf"
    assert cli.main(["export", str(run_dir), "--to", str(target), "--format", "gguf"]) == 0
    printed = capsys.readouterr().out
    assert "architecture apertus: an architecture of llama.cpp, which computes exactly this model" in printed
    assert "llama.cpp encodes texts as training did, but for words with characters such as" in printed
    assert [path.name for path in target.parent.iterdir()] == ["tales.gguf"]
    reader = gguf.GGUFReader(target)
    assert value(reader, "general.name") == "tales"
    np.testing.assert_array_equal(  # the moving average
        tensors(reader)["blk.0.ffn_up.weight"],
        np.asarray(minigpt_jax.load(run_dir).weights["block_0"]["feed_forward"]["up"]["kernel"]).T,
    )


def test_model_card_of_the_folder_says_how(run_dir: Path, other_run_dir: Path, tmp_path: Path) -> None:
    for run, expected in ((run_dir, True), (other_run_dir, False)):  # the other has no architecture there
        minigpt_jax.export(run, tmp_path / "tales")
        assert ("ollama run tales" in (tmp_path / "tales" / "README.md").read_text()) == expected


def test_step_and_an_earlier_export(run_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    first = minigpt_jax.export(run_dir, target, format="gguf", step=6)
    assert (first.step, first.class_name) == (6, "apertus")
    again = minigpt_jax.export(run_dir, target, "gguf", "float16", step="best")
    assert first.size / 2 < again.size < first.size
    assert value(gguf.GGUFReader(target), "general.file_type") == 1


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("folder", r"it is a folder, and a GGUF is a file; give --to .*folder/model\.gguf"),
        ("model", r"ends in \.gguf; give --to .*model\.gguf"),
        ("mine.gguf", "it is no earlier export; name another file"),
        ("foreign.gguf", "it is no earlier export; name another file"),
        ("mine.gguf/x.gguf", "is no folder"),
    ],
)
def test_other_places_are_refused(to: str, said: str, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.gguf").write_text("mine")
    writer = gguf.GGUFWriter(tmp_path / "foreign.gguf", "llama")
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=said):
        minigpt_jax.export(run_dir, tmp_path / to, format="gguf")
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "mine.gguf").read_text() == "mine"


def test_file_for_the_other_format_is_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --format gguf"):
        minigpt_jax.export(run_dir, tmp_path / "model.gguf")


def test_failure_leaves_the_earlier_file(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minigpt_jax.export(run_dir, tmp_path / "model.gguf", format="gguf")
    before = (tmp_path / "model.gguf").read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(OSError, match="No space"):
        minigpt_jax.export(run_dir, tmp_path / "model.gguf", "gguf", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == before


def test_refused_models_leave_nothing(other_run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no architecture of .* computes a model with"):
        minigpt_jax.export(other_run_dir, tmp_path / "new.gguf", format="gguf")
    assert not list(tmp_path.iterdir())


def test_package_is_named(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package gguf; pip install 'minigpt_jax\[gguf\]'"):
        minigpt_jax.export(run_dir, tmp_path / "model.gguf", format="gguf")
