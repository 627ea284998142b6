"""Text, losses and training of language models against transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polymoe.adapters import adapt
from polymoe.batch import Batch
from polymoe.interop.peft import load_adapter
from polymoe.models import generate, load_base
from polymoe.parameters import FlatParameters
from polymoe.tape import Tape, data_of
from polymoe.training import TrainingConfig
from polymoe.training.objectives import Lm
from polymoe.training.objectives.lm import Targets
from polymoe.training.optim import AdamW

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
NEAR = 1e-3
OLD_NAME = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT asks transformers by it
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings(OLD_NAME)]


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


def same_until_close(reference: Any, prompt: Any, got: Any, want: Any) -> int:
    """The number of equal tokens; a difference must come where the two best logits are close."""
    for i, (a, b) in enumerate(zip(got, want, strict=False)):
        if a != b:
            with torch.no_grad():
                logits = reference(torch.tensor([[*prompt, *want[:i]]])).logits[0, -1]
            best = logits.topk(2).values
            assert float(best[0] - best[1]) < NEAR, (i, a, b)
            return i
    assert len(got) == len(want)
    return len(got)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    reference, folder = make(tmp_path, kind)
    texts = generate(load_base(folder), PROMPTS, max_new_tokens=48)
    for prompt, (text,) in zip(PROMPTS, texts, strict=True):
        with torch.no_grad():
            out = reference.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False, num_beams=1)
        same_until_close(reference, prompt, text.token_ids, out[0, len(prompt) :].tolist())


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
    ends = list(range(3, 266, 4))
    base: Any = load_base(folder)
    base.eos_token_ids = tuple(ends)
    options = {
        "num_beams": 4, "num_return_sequences": 3, "length_penalty": length_penalty,
        "early_stopping": early_stopping, "max_new_tokens": 12,
    }  # fmt: skip
    texts = generate(base, PROMPTS, **options)
    finishes = set()
    for prompt, found in zip(PROMPTS, texts, strict=True):
        with torch.no_grad():
            out = reference.generate(
                torch.tensor([prompt]), do_sample=False, eos_token_id=ends, pad_token_id=2,
                return_dict_in_generate=True, output_scores=True, **options,
            )  # fmt: skip
        for text, row, score in zip(found, out.sequences, out.sequences_scores, strict=True):
            want = row[len(prompt) :].tolist()
            assert list(text.token_ids) == want[: len(text.token_ids)]
            assert set(want[len(text.token_ids) :]) <= {2}
            assert text.score == pytest.approx(float(score), rel=1e-4, abs=1e-5)
            finishes.add(text.finish)
    assert "eos" in finishes


def test_the_loss_is_that_of_masked_labels(tmp_path: Path) -> None:
    reference, folder = make(tmp_path)
    rng = np.random.default_rng(0)
    lengths, prompts = np.array([9, 4, 17]), np.array([5, 1, 16])
    model = adapt(load_base(folder), "poly", ["a"], r=2, target_modules="all-linear")
    ids = [rng.integers(4, 90, size=n) for n in lengths]
    loss = Lm().loss(model.eval(), lm_batch(ids, prompts, np.zeros(3, np.int64)))
    padded, labels = torch.zeros(3, 17, dtype=torch.long), torch.full((3, 17), -100)
    for i, (tokens, n) in enumerate(zip(ids, prompts, strict=True)):
        padded[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, n : len(tokens)] = torch.tensor(tokens[n:])
    mask = torch.arange(17)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        want = reference(input_ids=padded, attention_mask=mask.long(), labels=labels).loss
    assert float(data_of(loss.mean)) == pytest.approx(float(want), rel=1e-5)


def lm_batch(ids: list[np.ndarray], prompts: np.ndarray, task_ids: np.ndarray) -> Batch:
    """Examples of prompt and target as the objective makes them."""
    cu_seqlens = np.concatenate([[0], np.cumsum([len(i) for i in ids])])
    counts = np.diff(cu_seqlens) - prompts
    offsets = np.concatenate([[0], np.cumsum(counts)])
    rows = np.concatenate(
        [np.arange(a + n, b) for a, b, n in zip(cu_seqlens, cu_seqlens[1:], prompts, strict=False)]
    )
    tokens = np.concatenate(ids)
    targets = Targets(rows - 1, tokens[rows], None, offsets)
    return Batch(cu_seqlens, tokens, task_ids, targets=targets, prompt_lengths=prompts)


def test_twenty_steps_are_those_of_peft(tmp_path: Path) -> None:
    """Poly on every linear layer, the same start, no noise, AdamW: the losses of twenty steps."""
    reference, folder = make(tmp_path)
    torch.manual_seed(1)
    config = peft.PolyConfig(
        task_type=peft.TaskType.CAUSAL_LM, r=4, n_tasks=3, n_skills=3, n_splits=1, poly_type="poly",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    peft_model = peft.get_peft_model(reference, config)
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if "poly_lora_B" in name:
                p.normal_(0, 0.05)
    peft_model.save_pretrained(tmp_path / "adapter")
    model = load_adapter(load_base(folder), tmp_path / "adapter").eval()  # eval: PEFT's noise has no switch
    peft_model.eval()
    settings = TrainingConfig(
        learning_rate=1e-2, router_learning_rate=1e-2, weight_decay=0.0, max_grad_norm=0.0,
        lr_scheduler_type="constant",
    )  # fmt: skip
    flat = FlatParameters(model.adapter_parameters())
    ours = AdamW(flat, settings, 20, {"skills": 1e-2, "content": 1e-2})
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    theirs = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    objective, losses = Lm(), []
    for step in range(20):
        rng = np.random.default_rng(step % 2)  # two batches in turn
        lengths = rng.integers(4, 20, size=4)
        prompts = np.array([int(rng.integers(1, n)) for n in lengths])
        task_ids = rng.integers(3, size=4)
        ids = [rng.integers(4, 90, size=n) for n in lengths]
        with Tape() as tape:
            loss = objective.loss(model, lm_batch(ids, prompts, task_ids))
        tape.backward(loss.mean)
        ours.update()
        flat.zero_grad()

        most = int(lengths.max())
        padded, labels = torch.zeros(4, most, dtype=torch.long), torch.full((4, most), -100)
        for i, (tokens, n) in enumerate(zip(ids, prompts, strict=True)):
            padded[i, : len(tokens)] = torch.tensor(tokens)
            labels[i, n : len(tokens)] = torch.tensor(tokens[n:])
        mask = (torch.arange(most)[None] < torch.tensor(lengths)[:, None]).long()
        out = peft_model(
            input_ids=padded, attention_mask=mask, labels=labels, task_ids=torch.tensor(task_ids)
        )
        theirs.zero_grad()
        out.loss.backward()
        theirs.step()
        losses.append((float(data_of(loss.mean)), float(out.loss.detach())))
    found, want = np.array(losses).T
    assert want[-2] < 0.9 * want[0]
    np.testing.assert_allclose(found, want, rtol=1e-5)
