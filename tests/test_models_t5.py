"""The T5 network: against a NumPy T5 in float64, its gradients, its folders, and what is refused."""

import dataclasses
import re

import numpy as np
import pytest
from cases import lengths_to_cu_seqlens
from families import assert_gradient_is_that_of_differences, assert_weights
from tiny import write_json
from tiny_t5 import numpy_t5, tiny_config, tiny_state, write_t5

from polymoe import adapt, tape
from polymoe.batch import Batch, Source
from polymoe.models import T5, T5Config, load_base

SOURCES = [5, 1, 30, 64, 2]
TARGETS = [3, 7, 1, 30, 0]
KINDS = {
    "v1.1": {},
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "silu": {"feed_forward_proj": "gated-silu", "num_decoder_layers": 1},
}


def make_t5(dtype=np.float32, state=None, **config):
    config = tiny_config(**config)
    return T5.from_state(T5Config.from_dict(config), tiny_state(config) if state is None else state, dtype)


def make_batch(sources=SOURCES, targets=TARGETS, seed=1, **fields):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(2, 300, sum(lengths)) for lengths in (sources, targets)]
    source = Source(ids[0], lengths_to_cu_seqlens(sources))
    return Batch(lengths_to_cu_seqlens(targets), ids[1], source=source, **fields)


def texts_of(batch):
    return zip(
        np.split(batch.source.token_ids, batch.source.cu_seqlens[1:-1]),
        np.split(batch.token_ids, batch.cu_seqlens[1:-1]),
        strict=True,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-5), (np.float32, 5e-5)])
def test_logits_match_a_t5_of_numpy(kind, dtype, tolerance):
    config, batch = tiny_config(**KINDS[kind]), make_batch()
    base = make_t5(dtype, **KINDS[kind])
    logits = base.logits(base(batch))
    assert logits.dtype == dtype
    expected = [numpy_t5(config, tiny_state(config), *text) for text in texts_of(batch) if len(text[1])]
    expected = np.concatenate(expected)
    assert expected.std() > 0.2
    np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)


def test_module_names_are_those_of_hugging_face():
    base = make_t5()
    names = {name for name, _ in base.named_modules()}
    linears = {f"encoder.block.1.layer.0.SelfAttention.{n}" for n in "qkvo"}
    linears |= {f"decoder.block.1.layer.1.EncDecAttention.{n}" for n in "qkvo"}
    linears |= {f"decoder.block.0.layer.2.DenseReluDense.{n}" for n in ("wi_0", "wi_1", "wo")} | {"lm_head"}
    assert linears | {"shared", "encoder.block.1.layer.1.DenseReluDense"} <= names
    assert {name.rpartition(".")[0] for name in base.config.shapes()} <= names


@pytest.mark.parametrize("kind", ["v1.1", "v1.0"])
@pytest.mark.parametrize(
    "name",
    ["encoder.block.0.layer.0.SelfAttention.k", "decoder.block.0.layer.1.EncDecAttention.v",
     "decoder.block.0.layer.0.SelfAttention.q"],
)  # fmt: skip
def test_gradient_through_the_whole_model_matches_differences(kind, name):
    base, batch = make_t5(np.float64, **KINDS[kind]), make_batch([4, 9], [5, 3])
    n = 13 if "EncDec" in name or "encoder" in name else 8
    output = lambda batch: base.logits(base(batch))
    assert_gradient_is_that_of_differences(base, name, n, output, batch, rtol=1e-6)


def test_packed_equals_one_at_a_time():
    base, batch = make_t5(), make_batch()
    alone = [
        base(Batch(np.array([0, len(ids)]), ids, source=Source(source, np.array([0, len(source)]))))
        for source, ids in texts_of(batch)
    ]
    np.testing.assert_allclose(base(batch), np.concatenate(alone), rtol=1e-5, atol=1e-5)


def test_a_token_does_not_see_what_follows():
    base, batch = make_t5(), make_batch([9], [20])
    shorter = dataclasses.replace(batch, cu_seqlens=np.array([0, 13]), token_ids=batch.token_ids[:13])
    np.testing.assert_allclose(base(batch)[:13], base(shorter), rtol=1e-5, atol=1e-5)


def test_a_batch_without_a_source_is_read_and_the_decoder_stands_at_its_start():
    base, batch = make_t5(), make_batch([4, 9, 1], [1, 1, 1])
    batch = dataclasses.replace(batch, token_ids=np.zeros(3, np.int64))
    read = Batch(batch.source.cu_seqlens, batch.source.token_ids)
    np.testing.assert_array_equal(base(read), base(batch))
    np.testing.assert_array_equal(base.embed(read), base(read))
    states, base.pooling = base.encoder(read), "mean"
    means = [part.mean(0) for part in np.split(states, [4, 13])]
    np.testing.assert_allclose(base.embed(read), means, rtol=1e-5, atol=1e-6)


def test_what_follows_prompts_is_what_the_decoder_reads():
    base = make_t5()
    ids = np.arange(10, 22)
    together = Batch(np.array([0, 5, 9, 12]), ids, prompt_lengths=np.array([2, 3, 3]))
    batch, rows = base.follow(together)
    np.testing.assert_array_equal(batch.source.token_ids, [10, 11, 15, 16, 17, 19, 20, 21])
    np.testing.assert_array_equal(batch.source.cu_seqlens, [0, 2, 5, 8])
    np.testing.assert_array_equal(batch.token_ids, [0, 12, 13, 0])  # the targets 12 13 14, 18 and none
    np.testing.assert_array_equal(batch.cu_seqlens, [0, 3, 4, 4])
    np.testing.assert_array_equal(rows, np.arange(4))
    np.testing.assert_array_equal(batch.prompt_lengths, [1, 1, 0])
    assert (batch.n_tokens, batch.n_read) == (4, 12)


@pytest.mark.parametrize("method", ["lora", "poly", "mhr", "smear", "orchmoe", "hydralora", "ia3"])
def test_adapters_train_on_it(method):
    base = make_t5()
    options = {} if method == "ia3" else {"r": 2}
    model = adapt(base, method, ["a", "b"], seed=3, init_weights=False, **options).train()
    wanted = {"k", "v", "wo"} if method == "ia3" else {"q", "v"}
    assert set(model.config.target_modules) == wanted
    batch = make_batch([5, 7], [3, 4], task_ids=np.array([1, 0]), prompt_lengths=np.array([1, 1]))
    with tape.Tape() as t:
        logits = base.logits(model(batch))
    t.backward(logits, np.random.default_rng(0).normal(size=(7, 300)).astype(np.float32))
    own = r"decoder\..*(SelfAttention\..|EncDecAttention\.q)\.router\.query"  # a pool of one token
    params = [(n, p) for n, p in model.adapter_parameters() if p.trainable and not re.fullmatch(own, n)]
    grads = {name: p.grad for name, p in params}
    assert any("encoder.block.0" in name for name in grads)
    assert any("EncDecAttention.v" in name for name in grads)
    assert all(grad is not None and np.abs(grad).max() > 0 for grad in grads.values()), method


@pytest.mark.parametrize("kind", ["v1.1", "v1.0"])
@pytest.mark.parametrize("method", ["alter-stage-1", "alter"])
def test_alter_adapts_feed_forwards_of_both_stacks(method, kind):
    base = make_t5(**KINDS[kind])
    options = {"task_types": ("one", "other"), "target_modules": r".*\.DenseReluDense"}
    model = adapt(base, method, ["a", "b"], **options)
    assert len(model.adapter.layers) == 4
    batch = make_batch([5, 7], [3, 4], task_ids=np.array([1, 0]))
    if method == "alter-stage-1":  # copies alone, weights that sum to 1
        np.testing.assert_allclose(model(batch), base(batch), rtol=1e-4, atol=1e-5)
    with tape.Tape() as t:
        logits = base.logits(model.train()(batch))
    t.backward(logits, np.random.default_rng(0).normal(size=(7, 300)).astype(np.float32))
    wanted = {name: p.grad for name, p in model.adapter_parameters() if p.trainable}
    for part in (["wi"] if kind == "v1.0" else ["wi_0", "wi_1"]) + ["wo"]:
        grads = [grad for name, grad in wanted.items() if name.endswith(f"experts.own.{part}_weight")]
        assert len(grads) == 4 and all(np.abs(grad).max() > 0 for grad in grads), part


def test_all_linear_leaves_the_head_out():
    model = adapt(make_t5(), "lora", target_modules="all-linear")
    assert len(model.config.target_modules) == 2 * 7 + 2 * 11
    assert "lm_head" not in model.config.target_modules


def test_buckets_of_the_published_sizes():
    sizes = tiny_config(relative_attention_num_buckets=32, relative_attention_max_distance=128)
    config = T5Config.from_dict(sizes)
    both, back = config.buckets(True), config.buckets(False)
    assert both.shape == back.shape == (257,)
    assert both[128 - 7 : 129].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert both[129:137].tolist() == [17, 18, 19, 20, 21, 22, 23, 24]
    assert (both[0], both[256], back[0]) == (15, 31, 31)
    assert (both[128 - 16], both[128 - 15], both[128 - 32], both[128 + 64]) == (10, 9, 12, 30)
    assert back[128:].tolist() == [0] * 129
    assert back[128 - 17 : 128].tolist() == [16, 16, *range(15, 0, -1)]


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (Batch(np.array([0, 2])), ValueError, "token_ids: expected the"),
        (make_batch([65], [1]), ValueError, "cu_seqlens: expected at most 64 tokens per example, got 65"),
        (make_batch([1], [65]), ValueError, "cu_seqlens: expected at most 64 tokens per example, got 65"),
        (make_batch([0, 3], [1, 1]), ValueError, "cu_seqlens_k: expected 1 to 0 keys in example 0"),
        (Batch(np.array([0, 2]), np.array([0, 300])), IndexError, "ids: expected values from 0 to 299"),
    ],
)
def test_a_wrong_batch_is_refused(batch, error, message):
    with pytest.raises(error, match=message):
        make_t5()(batch)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"model_type": "umt5"}, "model_type: expected one of ['t5', 'mt5'], got 'umt5'"),
        ({"feed_forward_proj": "gated-swish"}, "feed_forward_proj: expected one of"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder: expected true"),
        ({"d_kv": None}, "config: expected d_kv, got none"),
        ({"d_kv": 0}, "d_kv: expected a positive integer, got 0"),
        ({"relative_attention_num_buckets": 7}, "relative_attention_num_buckets: expected an even number"),
        ({"relative_attention_max_distance": 4}, "relative_attention_max_distance: expected more than 4"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon: expected a positive number, got 0"),
        ({"decoder_start_token_id": 300}, "decoder_start_token_id: expected 0 to 299 (vocab_size), got 300"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected weights in floats"),
    ],
)
def test_a_configuration_that_is_not_computed_is_named(override, message):
    with pytest.raises(ValueError) as error:
        T5Config.from_dict(tiny_config(**override))
    assert message in str(error.value)


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 0), ("F16", 0.005), ("BF16", 0.03)])
@pytest.mark.parametrize("shards", [1, 4])
def test_a_folder_is_read_in_every_dtype_and_in_shards(tmp_path, dtype, tolerance, shards):
    folder = write_t5(tmp_path, dtype=dtype, shards=shards)
    base, state = load_base(folder), tiny_state(tiny_config())
    assert_weights(base, state, tolerance)
    assert (base.model_type, base.max_length, base.eos_token_ids) == ("t5", 64, (1,))
    tokens = base.tokenizer.encode(["the cat 1984"])
    assert tokens.ids[-1] == 1
    assert base.tokenizer.decode(tokens.ids) == "the cat 1984"
    assert base.encode(["the cat", "a"]).shape == (2, 24)


def test_weights_in_bfloat16_compute_nearly_the_same(tmp_path):
    folder = write_t5(tmp_path)
    batch, base = make_batch(), load_base(folder)
    half = load_base(folder, "bfloat16")
    assert (half.weight_dtype, half.dtype) == ("bfloat16", np.float32)
    logits, expected = half.logits(half(batch)), base.logits(base(batch))
    error = np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < 0.05
    assert half.fingerprint == base.fingerprint


def test_a_head_is_its_own_where_it_differs_from_the_table():
    state = tiny_state(tiny_config())
    own = make_t5(state=state, tie_word_embeddings=True, scale_decoder_outputs=False)  # as new writers say
    assert not own.config.tie_word_embeddings
    assert own.fingerprint == make_t5(state=state).fingerprint
    same = state | {"lm_head.weight": state["shared.weight"]}
    tied = make_t5(state=same)
    assert tied.lm_head.weight is tied.shared.weight
    with pytest.raises(ValueError, match=r"weights: .* missing lm_head\.weight"):
        make_t5(state={name: w for name, w in state.items() if name != "lm_head.weight"})


def test_copies_of_the_table_and_an_unused_bias_are_left_out():
    state = tiny_state(tiny_config())
    copies = {f"{stack}.embed_tokens.weight": state["shared.weight"] for stack in ("encoder", "decoder")}
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((8, 4), "f4")}
    expected = make_t5().fingerprint
    assert make_t5(state=state | copies | unused).fingerprint == expected
    del (bare := state | copies)["shared.weight"]
    assert make_t5(state=bare).fingerprint == expected


def test_what_begins_and_ends_a_text_is_what_the_folder_says(tmp_path):
    write_t5(tmp_path)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [1, 7], "decoder_start_token_id": 5})
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 9})
    base = load_base(tmp_path)
    assert (base.eos_token_ids, base.config.decoder_start_token_id, base.max_length) == ((1, 7), 5, 9)


def test_a_folder_with_sentence_pieces_alone_is_refused(tmp_path):
    write_t5(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "spiece.model")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: .* got spiece\.model alone: write"):
        load_base(tmp_path)
