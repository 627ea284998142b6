"""Text, losses and training of language models against transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_side import (
    assert_beams_are_theirs,
    assert_greedy_texts_are_theirs,
    labelled,
    lm_batch,
    poly_of_peft,
    train_both,
)

from polymoe.adapters import adapt
from polymoe.interop.peft import load_adapter
from polymoe.models import load_base
from polymoe.tape import data_of
from polymoe.training.objectives import Lm

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SIZES = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "eos_token_id": 3,
    "bos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.4,
}  # fmt: skip
KINDS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
}
PROMPTS = [[1, 5, 9, 11], [1, 7], [1, 6, 6, 19, 8, 30, 31, 5, 44], [1, 12, 40]]


def make(tmp: Path, kind: str = "llama", seed: int = 0, **overrides: Any) -> tuple[Any, Path]:
    """A random model of transformers and its folder, with a tokenizer that this test does not use."""
    from tiny_llama import tiny_tokenizer

    config, model = KINDS[kind]
    torch.manual_seed(seed)
    vocabulary = tiny_tokenizer().get_vocab_size()
    reference = model(config(**SIZES | {"vocab_size": vocabulary} | overrides)).eval()
    folder = tmp / f"{kind}{seed}"
    reference.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return reference, folder


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    reference, folder = make(tmp_path, kind)
    assert_greedy_texts_are_theirs(load_base(folder), reference, PROMPTS)


@pytest.mark.parametrize(
    ("kind", "early_stopping", "length_penalty", "seed"),
    [
        ("llama", False, 1.0, 0),
        ("qwen2", False, 0.0, 1),
        ("llama", True, 2.0, 2),
    ],
)
def test_beams_are_those_of_transformers(
    tmp_path: Path, kind: str, early_stopping: bool, length_penalty: float, seed: int
) -> None:
    # a flat distribution and an end that comes often: many ways, some of which finish
    reference, folder = make(tmp_path, kind, seed, initializer_range=0.2)
    options = {"early_stopping": early_stopping, "length_penalty": length_penalty}
    assert_beams_are_theirs(load_base(folder), reference, PROMPTS, list(range(3, 266, 4)), **options)


def test_the_loss_is_that_of_masked_labels(tmp_path: Path) -> None:
    reference, folder = make(tmp_path)
    rng = np.random.default_rng(0)
    lengths, prompts = np.array([9, 4, 17]), np.array([5, 1, 16])
    model = adapt(load_base(folder), "poly", ["a"], r=2, target_modules="all-linear")
    ids = [rng.integers(4, 90, size=n).tolist() for n in lengths]
    rows = [(0, own[:n], own[n:]) for own, n in zip(ids, prompts, strict=True)]
    loss = Lm().loss(model.eval(), lm_batch(rows))
    with torch.no_grad():
        want = reference(**labelled(rows)).loss
    assert float(data_of(loss.mean)) == pytest.approx(float(want), rel=1e-5)


def test_twenty_steps_are_those_of_peft(tmp_path: Path) -> None:
    """Poly on every linear layer, the same start, no noise, AdamW: the losses of twenty steps."""
    reference, folder = make(tmp_path)
    adapted, batches = poly_of_peft(reference, 0.05), []
    adapted.save_pretrained(tmp_path / "adapter")
    for step in range(20):
        rng = np.random.default_rng(step % 2)  # two batches in turn
        lengths = rng.integers(4, 20, size=4)
        prompts = [int(rng.integers(1, n)) for n in lengths]
        tasks = rng.integers(3, size=4).tolist()
        ids = [rng.integers(4, 90, size=n).tolist() for n in lengths]
        batches.append([(t, own[:n], own[n:]) for t, own, n in zip(tasks, ids, prompts, strict=True)])
    model = load_adapter(load_base(folder), tmp_path / "adapter")
    found, want = train_both(model, adapted, batches, 1e-2)
    assert want[-2] < 0.9 * want[0]
    np.testing.assert_allclose(found, want, rtol=1e-5)
