"""Bert against BertModel and the tokenizer of transformers: MiniLM on real texts, and a small random BERT."""

import json

import numpy as np
import pytest
from real import minilm_folder, real_tasks
from tiny_bert import write_bert

from polymoe.batch import Batch
from polymoe.models import load_base

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def real_texts(n):
    """n texts of tasks in turn, from a few words to more than MiniLM takes."""
    files = sorted(real_tasks("superglue").glob("*.test.jsonl"))
    lines = [file.read_text(encoding="utf-8").splitlines() for file in files]
    return [json.loads(row)["input"] for rows in zip(*lines, strict=False) for row in rows][:n]


def torch_tokens(folder, texts, max_length):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")


def torch_hidden(folder, inputs):
    """[B, L, D] in float32."""
    model = transformers.BertModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return model(**inputs).last_hidden_state


@pytest.fixture(scope="module")
def minilm():
    """The base, 64 texts, what transformers makes of them."""
    folder, texts = minilm_folder(), real_texts(64)
    inputs = torch_tokens(folder, texts, 256)
    return load_base("minilm"), texts, inputs, torch_hidden(folder, inputs)


def test_minilm_tokens_are_those_of_transformers(minilm):
    base, texts, inputs, _ = minilm
    tokens = base.tokenizer.encode(texts)
    assert len(texts) == 64
    assert tokens.lengths.min() < 20
    assert tokens.lengths.max() == 256
    mask = inputs["attention_mask"].numpy().astype(bool)
    np.testing.assert_array_equal(tokens.lengths, mask.sum(1))
    np.testing.assert_array_equal(tokens.ids, inputs["input_ids"].numpy()[mask])


def test_minilm_hidden_states_are_those_of_transformers(minilm):
    base, texts, inputs, expected = minilm
    tokens = base.tokenizer.encode(texts)
    hidden = base(Batch(tokens.cu_seqlens, tokens.ids))
    mask = inputs["attention_mask"].numpy().astype(bool)
    np.testing.assert_allclose(hidden, expected.numpy()[mask], rtol=0, atol=2e-5)


def test_minilm_embeddings_are_the_normalized_means(minilm):
    base, texts, inputs, hidden = minilm
    mask = inputs["attention_mask"][:, :, None].float()
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    np.testing.assert_allclose(base.encode(texts), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_a_random_bert_is_that_of_transformers(tmp_path, hidden_act, pooling):
    folder = write_bert(tmp_path, hidden_act=hidden_act, pooling=pooling, layer_norm_eps=1e-5)
    texts = [
        "a cat sleeps",
        "",
        "the big dog walks, the small cat sleeps. the dog sees a house! " * 4,
        "Red?",
    ]
    base = load_base(folder)
    tokens = base.tokenizer.encode(texts)
    padded = torch.zeros((4, 32), dtype=torch.long)
    mask = torch.arange(32) < torch.tensor(tokens.lengths)[:, None]
    padded[mask] = torch.tensor(tokens.ids.astype(np.int64))
    expected = torch_hidden(folder, {"input_ids": padded, "attention_mask": mask.long()})
    hidden = base(Batch(tokens.cu_seqlens, tokens.ids))
    np.testing.assert_allclose(hidden, expected.numpy()[mask.numpy()], rtol=1e-5, atol=2e-5)
    means = (expected * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    pooled = expected[:, 0] if pooling == "cls_token" else means
    np.testing.assert_allclose(base.encode(texts), pooled.numpy(), rtol=1e-5, atol=2e-5)
