"""The BERT network: against a padded NumPy BERT in float64, its gradient, and what encode promises."""

import math

import numpy as np
import pytest
from cases import lengths_to_cu_seqlens
from families import assert_gradient_is_that_of_differences
from tiny_bert import CONFIG, tiny_config, tiny_state, write_bert

from polymoe.batch import Batch
from polymoe.models import Bert, BertConfig, load_base

LENGTHS = [5, 1, 12, 32, 2]
erf = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "gelu_new": lambda x: x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def make_bert(dtype=np.float32, state=None, options=None, **config):
    config = tiny_config(**config)
    state = tiny_state(config) if state is None else state
    return Bert.from_state(BertConfig.from_dict(config), state, dtype, **(options or {}))


def make_batch(lengths=LENGTHS, seed=1):
    cu_seqlens = lengths_to_cu_seqlens(lengths)
    return Batch(
        cu_seqlens, np.random.default_rng(seed).integers(0, tiny_config()["vocab_size"], cu_seqlens[-1])
    )


def padded_bert(config, state, ids):
    """Hidden states [L, D] of one text, written as the paper has it, in float64."""
    w = {name: t.astype(np.float64) for name, t in state.items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config["layer_norm_eps"])
        return x * w[name + ".weight"] + w[name + ".bias"]

    def dense(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def heads(x):
        return x.reshape(len(ids), config["num_attention_heads"], -1).transpose(1, 0, 2)

    e = "embeddings."
    x = w[e + "word_embeddings.weight"][ids] + w[e + "token_type_embeddings.weight"][0]
    x = norm(x + w[e + "position_embeddings.weight"][: len(ids)], e + "LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        q, k, v = (heads(dense(x, f"{layer}attention.self.{n}")) for n in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        p = np.exp(scores - scores.max(-1, keepdims=True))
        context = (p / p.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(x.shape)
        x = norm(x + dense(context, layer + "attention.output.dense"), layer + "attention.output.LayerNorm")
        h = ACTIVATIONS[config["hidden_act"]](dense(x, layer + "intermediate.dense"))
        x = norm(x + dense(h, layer + "output.dense"), layer + "output.LayerNorm")
    return x


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 2e-5)])
def test_hidden_states_match_a_padded_bert(hidden_act, dtype, tolerance):
    config = tiny_config(hidden_act=hidden_act, layer_norm_eps=1e-5)
    state, batch = tiny_state(config), make_batch()
    hidden = make_bert(dtype, hidden_act=hidden_act, layer_norm_eps=1e-5)(batch)
    assert hidden.dtype == dtype
    texts = np.split(batch.token_ids, batch.cu_seqlens[1:-1])
    expected = np.concatenate([padded_bert(config, state, ids) for ids in texts])
    np.testing.assert_allclose(hidden, expected, rtol=tolerance, atol=tolerance)


def test_module_names_are_those_of_hugging_face():
    names = {name for name, _ in make_bert().named_modules()}
    layer = "encoder.layer.1"
    linears = [f"{layer}.attention.self.{n}" for n in ("query", "key", "value")]
    linears += [f"{layer}.attention.output.dense", f"{layer}.intermediate.dense", f"{layer}.output.dense"]
    norms = [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm", "embeddings.LayerNorm"]
    tables = [f"embeddings.{n}_embeddings" for n in ("word", "position", "token_type")]
    assert names.issuperset(linears + norms + tables)
    weights = {name.rpartition(".")[0] for name in BertConfig.from_dict(tiny_config()).shapes()}
    assert weights <= names


def test_gradient_through_the_whole_model_matches_differences():
    base, name = make_bert(np.float64), "encoder.layer.0.attention.self.query"
    assert_gradient_is_that_of_differences(base, name, 11, base.embed, make_batch([4, 7]))


def test_a_text_does_not_see_its_neighbours():
    base, batch = make_bert(), make_batch([6, 9, 3])
    together = base(batch)
    alone = [base(Batch(np.array([0, len(ids)]), ids)) for ids in np.split(batch.token_ids, [6, 15])]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-5)


def test_pooling_takes_the_mean_or_the_first_token():
    batch = make_batch([6, 1, 3])
    base = make_bert(options={"pooling": "mean"})
    hidden = base(batch)
    parts = np.split(hidden, [6, 7])
    np.testing.assert_allclose(base.pool(hidden, batch), [h.mean(0) for h in parts], rtol=1e-5, atol=1e-6)
    first = make_bert(options={"pooling": "cls", "normalize": True})
    expected = [h[0] / np.linalg.norm(h[0]) for h in parts]
    np.testing.assert_allclose(first.embed(batch), expected, rtol=1e-5, atol=1e-6)


def test_pooling_the_first_token_refuses_an_empty_example():
    base = make_bert(options={"pooling": "cls"})
    with pytest.raises(ValueError, match="cu_seqlens: expected a token in every example"):
        base.embed(make_batch([2, 0, 3]))
    with pytest.raises(ValueError, match="pooling: expected 'mean' or 'cls', got 'max'"):
        make_bert(options={"pooling": "max"})


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (Batch(np.array([0, 2])), ValueError, "token_ids: expected the"),
        (make_batch([33, 1]), ValueError, "cu_seqlens: expected at most 32 tokens per example, got 33"),
        (Batch(np.array([0, 2]), np.array([0, 26])), IndexError, "ids"),
        (Batch(np.array([0, 2]), np.array([0, -1])), IndexError, "ids"),
    ],
)
def test_a_wrong_batch_is_refused(batch, error, message):
    with pytest.raises(error, match=message):
        make_bert()(batch)


TEXTS = [
    "a cat sleeps",
    "",
    "the big dog walks, the small cat sleeps. the dog sees a house!",
    "Red",
    "a cat sleeps",
]


def test_encode_keeps_the_order_whatever_the_budget(tmp_path):
    base = load_base(write_bert(tmp_path))
    together = base.encode(TEXTS)
    assert together.shape == (5, 24)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together[0], together[4])
    for budget in (1, 7, 20):
        np.testing.assert_allclose(base.encode(TEXTS, batch_tokens=budget), together, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(base.encode(TEXTS[::-1]), together[::-1], rtol=1e-5, atol=1e-5)


def test_encode_takes_nothing_and_empty_texts(tmp_path):
    base = load_base(write_bert(tmp_path))
    assert base.encode([]).shape == (0, 24)
    empty = base.tokenizer.encode([""])
    assert empty.ids.tolist() == [2, 3]
    np.testing.assert_array_equal(base.encode([""]), base.embed(Batch(empty.cu_seqlens, empty.ids)))


def test_encode_says_which_texts_are_in_a_batch(tmp_path):
    base = load_base(write_bert(tmp_path))
    numbered = base.encode(TEXTS, 7, lambda batch: np.repeat(batch.example_ids[:, None], 24, axis=1))
    np.testing.assert_array_equal(numbered[:, 0], np.arange(5))


def test_encode_refuses_what_is_no_text(tmp_path):
    base = load_base(write_bert(tmp_path))
    with pytest.raises(TypeError, match="texts: expected a sequence of strings, got a string"):
        base.encode("a cat")
    with pytest.raises(TypeError, match="texts: expected strings, got NoneType"):
        base.encode(["a", None])
    with pytest.raises(ValueError, match="tokenizer: expected one to encode texts, got None"):
        make_bert().encode(["a"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            {"model_type": "xlm-roberta"},
            "model_type: expected 'bert' (BERT, MiniLM, BGE, E5, GTE), got 'xlm-roberta'",
        ),
        ({"model_type": None}, "got None"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: expected 'absolute'"),
        ({"is_decoder": True}, "is_decoder: expected False"),
        ({"add_cross_attention": True}, "add_cross_attention: expected False"),
        (
            {"hidden_act": "relu"},
            "hidden_act: expected one of ['gelu', 'gelu_new', 'gelu_pytorch_tanh'], got 'relu'",
        ),
        ({"num_attention_heads": 5}, "hidden_size: expected a multiple of num_attention_heads = 5, got 24"),
        ({"hidden_size": 24.0}, "hidden_size: expected a positive integer, got 24.0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer, got 0"),
        ({"layer_norm_eps": 0}, "layer_norm_eps: expected a positive number, got 0"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps: expected a positive number, got 'small'"),
    ],
)
def test_a_configuration_that_is_not_computed_is_named(override, message):
    with pytest.raises(ValueError) as error:
        BertConfig.from_dict(tiny_config(**override))
    assert message in str(error.value)


def test_defaults_of_the_configuration_are_those_of_bert_base():
    config = BertConfig.from_dict({"model_type": "bert"})
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (768, 12, 30522)
    assert set(CONFIG) - {"model_type"} <= set(vars(config))


def test_fingerprint_goes_by_the_values_of_the_weights():
    state = tiny_state(tiny_config())
    shuffled = dict(reversed(state.items()))
    assert make_bert().fingerprint == make_bert(state=shuffled).fingerprint
    assert len(make_bert().fingerprint) == 64
    name = "encoder.layer.1.output.dense.weight"
    changed = state[name].copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(9))
    assert make_bert(state=state | {name: changed}).fingerprint != make_bert().fingerprint


def test_repr_shows_the_tree():
    text = repr(make_bert(options={"name": "tiny"}))
    assert text.startswith("Bert('tiny', pooling='mean', normalize=False, max_length=32")
    assert "(query): Linear(in_features=24, out_features=24, bias=True)" in text
