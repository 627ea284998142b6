"""The Llama network: against a NumPy Llama in float64, its gradients, its folders, and what is refused."""

import numpy as np
import pytest
from cases import lengths_to_cu_seqlens
from families import assert_gradient_is_that_of_differences, assert_weights
from tiny import write_json
from tiny_llama import numpy_llama, tiny_config, tiny_state, write_llama

from polymoe import adapt, tape
from polymoe.batch import Batch
from polymoe.models import Llama, LlamaConfig, load_base
from polymoe.models.rope import inverse_frequencies

LENGTHS = [5, 1, 12, 48, 2]
KINDS = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "one head of keys": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 10},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "mistral": {"model_type": "mistral", "sliding_window": None},
}


def make_llama(dtype=np.float32, state=None, **config):
    config = tiny_config(**config)
    return Llama.from_state(
        LlamaConfig.from_dict(config), tiny_state(config) if state is None else state, dtype
    )


def make_batch(lengths=LENGTHS, seed=1, **fields):
    cu_seqlens = lengths_to_cu_seqlens(lengths)
    return Batch(cu_seqlens, np.random.default_rng(seed).integers(0, 300, cu_seqlens[-1]), **fields)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 2e-5), (np.float32, 3e-5)])
def test_logits_match_a_llama_of_numpy(kind, dtype, tolerance):
    config, batch = tiny_config(**KINDS[kind]), make_batch()
    base = make_llama(dtype, **KINDS[kind])
    logits = base.logits(base(batch))
    assert logits.dtype == dtype
    texts = np.split(batch.token_ids, batch.cu_seqlens[1:-1])
    expected = np.concatenate([numpy_llama(config, tiny_state(config), ids) for ids in texts])
    np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)


def test_module_names_are_those_of_hugging_face():
    base = make_llama(attention_bias=True)
    names = {name for name, _ in base.named_modules()}
    layer = "model.layers.1."
    linears = {layer + "self_attn." + n for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
    linears |= {layer + "mlp." + n for n in ("gate_proj", "up_proj", "down_proj")} | {"lm_head"}
    assert linears | {"model.embed_tokens", layer + "mlp", "model.norm"} <= names
    assert {name.rpartition(".")[0] for name in base.config.shapes()} <= names


@pytest.mark.parametrize("kind", ["llama", "tied", "qwen2"])
def test_gradient_through_the_whole_model_matches_differences(kind):
    base = make_llama(np.float64, **KINDS[kind])
    name, output = "model.layers.0.self_attn.k_proj", lambda batch: base.logits(base(batch))
    assert_gradient_is_that_of_differences(base, name, 11, output, make_batch([4, 7]))


def test_packed_equals_one_at_a_time():
    base, batch = make_llama(), make_batch([6, 9, 0, 3])
    together = base(batch)
    alone = [base(Batch(np.array([0, len(ids)]), ids)) for ids in np.split(batch.token_ids, [6, 15])]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-5)


def test_a_token_does_not_see_what_follows():
    base, batch = make_llama(), make_batch([20])
    shorter = Batch(np.array([0, 13]), batch.token_ids[:13])
    np.testing.assert_allclose(base(batch)[:13], base(shorter), rtol=1e-5, atol=1e-5)


def test_pooling_takes_the_last_token_or_the_mean():
    batch = make_batch([6, 1, 3])
    base = make_llama()
    hidden = base(batch)
    np.testing.assert_array_equal(base.embed(batch), hidden[[5, 6, 9]])
    base.pooling = "mean"
    means = [part.mean(0) for part in np.split(hidden, [6, 7])]
    np.testing.assert_allclose(base.pool(hidden, batch), means, rtol=1e-5, atol=1e-6)
    base.pooling = "last"
    with pytest.raises(ValueError, match="expected a token in every example to pool the last, got an empty"):
        base.embed(make_batch([2, 0]))
    with pytest.raises(ValueError, match="pooling: expected 'last' or 'mean', got 'cls'"):
        Llama.from_state(base.config, tiny_state(tiny_config()), pooling="cls")


@pytest.mark.parametrize("method", ["lora", "poly", "mhr", "smear", "orchmoe", "hydralora"])
def test_adapters_train_on_it(method):
    base = make_llama()
    model = adapt(base, method, ["a", "b"], seed=3, r=2, init_weights=False).train()
    assert set(model.config.target_modules) == {"q_proj", "v_proj"}
    batch = make_batch([5, 7], task_ids=np.array([1, 0]))
    with tape.Tape() as t:
        logits = base.logits(model(batch))
    t.backward(logits, np.ones((12, 300), np.float32))
    grads = {name: p.grad for name, p in model.adapter_parameters() if p.trainable}
    assert any("layers.0.self_attn.q_proj" in name for name in grads)
    assert all(grad is not None and np.abs(grad).max() > 0 for grad in grads.values()), method


def test_all_linear_leaves_the_head_out():
    model = adapt(make_llama(), "lora", target_modules="all-linear")
    assert len(model.config.target_modules) == 14
    assert "lm_head" not in model.config.target_modules


def test_an_adapter_of_the_head_takes_part_where_the_batch_brings_it():
    base = make_llama()
    model = adapt(base, "lora", target_modules=["lm_head"], init_weights=False)
    batch = model.attach(make_batch([4]))
    hidden = base(batch)
    np.testing.assert_array_equal(base.logits(hidden), base.logits(hidden, make_batch([4])))
    assert np.abs(base.logits(hidden, batch) - base.logits(hidden)).max() > 1e-3


def test_a_tied_head_shares_the_memory_of_the_table():
    base = make_llama(tie_word_embeddings=True)
    assert base.lm_head.weight is base.model.embed_tokens.weight
    state = tiny_state(tiny_config(tie_word_embeddings=True))
    copy = state | {"lm_head.weight": state["model.embed_tokens.weight"]}
    assert make_llama(state=copy, tie_word_embeddings=True).fingerprint == base.fingerprint


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (Batch(np.array([0, 2])), ValueError, "token_ids: expected the"),
        (make_batch([49, 1]), ValueError, "cu_seqlens: expected at most 48 tokens per example, got 49"),
        (Batch(np.array([0, 2]), np.array([0, 300])), IndexError, "ids: expected values from 0 to 299"),
        (Batch(np.array([0, 2]), np.array([0, -1])), IndexError, "ids: expected values from 0 to 299"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_wrong_batch_is_refused(batch, error, message, tied):
    with pytest.raises(error, match=message):
        make_llama(tie_word_embeddings=tied)(batch)


WINDOWS = [
    ({"model_type": "mistral", "sliding_window": 16}, 16),
    ({"model_type": "mistral", "sliding_window": None}, 48),
    ({"model_type": "mistral"}, 48),  # 4096, more than the context
    ({"model_type": "llama", "sliding_window": 16}, 48),
    ({"model_type": "qwen2", "sliding_window": 16}, 48),
    (
        {"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": True},
        48,
    ),  # no layer beyond the 28th
    ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, 16),
    (
        {
            "model_type": "qwen2",
            "sliding_window": 16,
            "use_sliding_window": True,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        16,
    ),
]


@pytest.mark.parametrize(("fields", "most"), WINDOWS)
def test_a_text_longer_than_a_sliding_window_is_refused(fields, most):
    base = make_llama(**fields)
    assert base.max_length == most
    base(make_batch([most]))
    with pytest.raises(ValueError, match=f"cu_seqlens: expected at most {most} tokens per example"):
        base(make_batch([most + 1]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            {"model_type": "mixtral"},
            "model_type: expected one of ['llama', 'mistral', 'qwen2'], got 'mixtral'",
        ),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', got 'gelu'"),
        ({"vocab_size": None}, "config: expected vocab_size, got none"),
        ({"num_attention_heads": 5}, "hidden_size: expected a multiple of num_attention_heads = 5, got 24"),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads: expected a divisor of num_attention_heads = 4, got 3",
        ),
        ({"head_dim": 5}, "head_dim: expected an even number, got 5"),
        ({"hidden_size": 24.0}, "hidden_size: expected a positive integer, got 24.0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: expected a positive number, got 0"),
        ({"rope_theta": "1e4"}, "rope_theta: expected a positive number, got '1e4'"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling: expected one of ['default', 'linear', 'llama3'], got 'yarn'",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: expected factor, a positive number, got None"),
        ({"rope_scaling": "linear"}, "rope_scaling: expected an object, got 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, got 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected weights in floats"),
        (
            {"model_type": "mistral", "sliding_window": 0},
            "sliding_window: expected a positive integer, got 0",
        ),
    ],
)
def test_a_configuration_that_is_not_computed_is_named(override, message):
    with pytest.raises(ValueError) as error:
        LlamaConfig.from_dict(tiny_config(**override))
    assert message in str(error.value)


def test_scalings_divide_the_frequencies():
    plain = inverse_frequencies(64, 500000.0, {})
    np.testing.assert_allclose(plain, 500000.0 ** -(np.arange(32) / 32), rtol=1e-6)
    assert plain.dtype == np.float32
    linear = inverse_frequencies(64, 500000.0, {"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-6)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    divisor = plain / inverse_frequencies(64, 500000.0, scaling)
    waves = 2 * np.pi / plain
    np.testing.assert_allclose(divisor[waves < 8192 / 4], 1, rtol=1e-6)
    np.testing.assert_allclose(divisor[waves > 8192], 8, rtol=1e-6)
    between = divisor[(waves > 8192 / 4) & (waves < 8192)]
    assert between.size
    assert (np.diff(between) > 0).all()
    assert between.min() > 1
    assert between.max() < 8
    again = inverse_frequencies(64, 500000.0, {"rope_type": "divisors", "divisors": divisor.tolist()})
    np.testing.assert_allclose(again, plain / divisor, rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"high_freq_factor: expected more than low_freq_factor = 1\.0, got 1\.0"
    ):
        inverse_frequencies(64, 1e4, scaling | {"high_freq_factor": 1.0})


def test_scaling_is_found_under_both_names():
    linear = {"rope_type": "linear", "factor": 2.0}
    old = make_llama(rope_scaling=linear)
    new = make_llama(rope_parameters={**linear, "rope_theta": 100.0}, rope_theta=None)
    np.testing.assert_array_equal(old(make_batch()), new(make_batch()))
    assert np.abs(old(make_batch()) - make_llama()(make_batch())).max() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 0), ("F16", 0.002), ("BF16", 0.02)])
@pytest.mark.parametrize("shards", [1, 4])
def test_a_folder_is_read_in_every_dtype_and_in_shards(tmp_path, dtype, tolerance, shards):
    folder = write_llama(tmp_path, dtype=dtype, shards=shards)
    base, state = load_base(folder), tiny_state(tiny_config())
    assert_weights(base, state, tolerance)
    assert (base.model_type, base.max_length, base.eos_token_ids) == ("llama", 48, (2,))
    tokens = base.tokenizer.encode(["the cat 1984"])
    assert base.tokenizer.tokenizer.decode(tokens.ids.tolist()) == "the cat 1984"
    assert base.encode(["the cat", "a"]).shape == (2, 24)


def test_a_model_saved_without_its_head_is_read_when_the_head_is_tied(tmp_path):
    state = tiny_state(tiny_config(tie_word_embeddings=True))
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    base = load_base(write_llama(tmp_path / "bare", state=bare, tie_word_embeddings=True))
    assert base.fingerprint == make_llama(tie_word_embeddings=True).fingerprint
    with pytest.raises(ValueError, match=r"weights: .* missing lm_head\.weight"):
        load_base(write_llama(tmp_path / "untied", state=bare))


def test_a_missing_shard_is_named(tmp_path):
    write_llama(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003\.safetensors"):
        load_base(tmp_path)


def test_chat_template_and_ends_are_those_of_the_folder(tmp_path):
    write_llama(tmp_path)
    assert load_base(tmp_path).tokenizer.chat_template is None
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "{{ a }}", "model_max_length": 9})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [2, 7]})
    base = load_base(tmp_path)
    assert (base.tokenizer.chat_template, base.max_length, base.eos_token_ids) == ("{{ a }}", 9, (2, 7))
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": several})
    assert load_base(tmp_path).tokenizer.chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("{{ b }}")
    assert load_base(tmp_path).tokenizer.chat_template == "{{ b }}"


def test_another_family_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=rf"^{tmp_path}: model_type: expected one of \['bert'.*got 'gpt2'"):
        load_base(write_llama(tmp_path, model_type="gpt2", state=tiny_state(tiny_config())))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: expected at most vocab_size = 200 tokens, got 266"
    ):
        load_base(write_llama(tmp_path, vocab_size=200))
