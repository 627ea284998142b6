"""Language models of ours and of transformers side by side, for the parity tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polymoe import tape
from polymoe.adapters import adapt
from polymoe.batch import Batch
from polymoe.models import generate
from polymoe.parameters import FlatParameters
from polymoe.training import TrainingConfig
from polymoe.training.objectives import Lm
from polymoe.training.objectives.lm import Targets
from polymoe.training.optim import AdamW

NEAR = 1e-3  # of two logits, between which rounding decides
Row = tuple[int, list[int], list[int]]  # task, prompt, target


def off(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, in units of the largest value where that is above 1."""
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def padded(packed: np.ndarray, mask: np.ndarray) -> Any:
    """[N, ...] -> [B, L, ...], as a tensor."""
    import torch

    out = np.zeros((*mask.shape, *packed.shape[1:]), packed.dtype)
    out[mask] = packed
    return torch.tensor(out)


def without_noise(model: Any) -> Any:
    """A PeftModel whose Poly routers, and nothing else, are in evaluation."""
    for module in model.modules():
        if type(module).__name__ == "PolyRouter":
            module.eval()
    return model


def ours_of(part: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array in PEFT's layout in ours."""
    if array.ndim == 4:
        return array.transpose((1, 3, 0, 2) if part == "lora_A" else (1, 2, 0, 3)).reshape(shape)
    return (array.T if part == "lora_B" else array).reshape(shape)


def assert_gradients_are_those_of_peft(
    base: Any,
    theirs: Any,
    batch: Callable[..., Batch],
    their_logits: Callable[..., Any],
    folder: Path,
    method: str,
    n_layers: int,
    **options: Any,
) -> None:
    """Of an adapter on ``base`` that PEFT reads from ``folder``, for five texts of three tasks."""
    import peft
    import torch

    options |= {"r": 4, "lora_alpha": 8, "init_weights": False}
    options |= {} if method == "lora" else {"n_skills": 3, "noise": "off", "lora_alpha": None}
    options |= {"n_splits": 2} if method == "mhr" else {}
    model: Any = adapt(base, method, ["a", "b", "c"], seed=4, **options).train()
    model.save_adapter(folder)
    theirs = without_noise(peft.PeftModel.from_pretrained(theirs, folder, is_trainable=True))
    tasks = np.array([2, 0, 1, 2, 0])
    given = {} if method == "lora" else {"task_ids": torch.tensor(tasks)}
    logits = their_logits(theirs.base_model, **given)
    dy = np.random.default_rng(2).normal(size=logits.shape).astype(np.float32) / len(logits)
    (logits * torch.tensor(dy)).sum().backward()
    with tape.Tape() as recorded:
        y = base.logits(model(batch(task_ids=tasks)))
    recorded.backward(y, dy)
    assert off(y.data, logits.detach().numpy()) < 1e-5
    grads = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}
    assert len(grads) == len(model.adapter_parameters()) == n_layers * (2 if method == "lora" else 3)
    for name, parameter in model.adapter_parameters():
        layer, part = name.rsplit(".", 2)[0], name.rpartition(".")[2]
        theirs_part = {"logits": "module_logits"}.get(part, part)
        found = [g for n, g in grads.items() if f".{layer}." in n and theirs_part in n]
        assert len(found) == 1, name
        expected = ours_of(part, found[0], parameter.shape)
        error = np.linalg.norm(parameter.grad - expected) / np.linalg.norm(expected)
        assert error < 1e-4, (name, error)


def assert_greedy_texts_are_theirs(base: Any, theirs: Any, prompts: Sequence[list[int]]) -> None:
    """48 tokens after each prompt; a difference must come where the two best logits are close."""
    import torch

    texts = generate(base, prompts, max_new_tokens=48)
    for prompt, (text,) in zip(prompts, texts, strict=True):
        with torch.no_grad():
            out = theirs.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False, num_beams=1)
        want = _new(theirs, prompt, out[0])
        for i, (a, b) in enumerate(zip(text.token_ids, want, strict=False)):
            if a != b:
                best = _next_logits(theirs, prompt, want[:i]).topk(2).values
                assert float(best[0] - best[1]) < NEAR, (i, a, b)
                break
        else:
            assert len(text.token_ids) == len(want)


def assert_beams_are_theirs(
    base: Any, theirs: Any, prompts: Sequence[list[int]], ends: list[int], **options: Any
) -> None:
    """Three texts of four beams after each prompt, and their scores; ``ends`` are many, so that some end."""
    import torch

    base.eos_token_ids = tuple(ends)
    options |= {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 12}
    texts = generate(base, prompts, **options)
    finishes = set()
    for prompt, found in zip(prompts, texts, strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), do_sample=False, eos_token_id=ends, pad_token_id=2,
                return_dict_in_generate=True, output_scores=True, **options,
            )  # fmt: skip
        for text, row, score in zip(found, out.sequences, out.sequences_scores, strict=True):
            want = _new(theirs, prompt, row)
            assert list(text.token_ids) == want[: len(text.token_ids)]
            assert set(want[len(text.token_ids) :]) <= {2}
            assert text.score == pytest.approx(float(score), rel=1e-4, abs=1e-5)
            finishes.add(text.finish)
    assert "eos" in finishes


def _new(model: Any, prompt: list[int], row: Any) -> list[int]:
    """What a row of its output has behind the prompt, or behind the start of its decoder."""
    found: list[int] = row[1 if model.config.is_encoder_decoder else len(prompt) :].tolist()
    return found


def _next_logits(model: Any, prompt: list[int], tokens: list[int]) -> Any:
    import torch

    with torch.no_grad():
        if model.config.is_encoder_decoder:
            read = torch.tensor([[0, *tokens]])
            return model(torch.tensor([prompt]), decoder_input_ids=read).logits[0, -1]
        return model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]


def lm_batch(rows: Sequence[Row]) -> Batch:
    """Examples of task, prompt and target as the objective makes them."""
    n_prompt, n_target = (np.array([len(row[i]) for row in rows]) for i in (1, 2))
    cu_seqlens, offsets = (np.concatenate([[0], np.cumsum(n)]) for n in (n_prompt + n_target, n_target))
    tokens = np.array([token for _, x, y in rows for token in (*x, *y)])
    targets = np.array([token for _, _, y in rows for token in y])
    at = np.arange(len(targets)) + np.repeat(cu_seqlens[:-1] + n_prompt - offsets[:-1], n_target)
    return Batch(
        cu_seqlens, tokens, np.array([row[0] for row in rows]), prompt_lengths=n_prompt,
        targets=Targets(at - 1, targets, None, offsets),
    )  # fmt: skip


def labelled(rows: Sequence[Row]) -> dict[str, Any]:
    """The same as a padded batch of transformers."""
    import torch

    shape = (len(rows), max(len(x) + len(y) for _, x, y in rows))
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    mask = torch.zeros_like(ids)
    for i, (_, x, y) in enumerate(rows):
        n = len(x) + len(y)
        ids[i, :n], labels[i, len(x) : n], mask[i, :n] = torch.tensor([*x, *y]), torch.tensor(y), 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def poly_of_peft(model: Any, spread: float) -> Any:
    """PEFT's Poly on every linear layer of a causal model, with a random B of that ``spread``."""
    import peft
    import torch

    torch.manual_seed(1)
    config = peft.PolyConfig(
        task_type=peft.TaskType.CAUSAL_LM, r=4, n_tasks=3, n_skills=3, n_splits=1, poly_type="poly",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "poly_lora_B" in name:
                p.normal_(0, spread)
    return adapted


def train_both(
    model: Any, adapted: Any, batches: Sequence[Sequence[Row]], rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Our losses and theirs of AdamW without decay, a step for each batch, no noise."""
    import torch

    model.eval()  # PEFT's noise has no other switch
    adapted.eval()
    settings = TrainingConfig(
        learning_rate=rate, router_learning_rate=rate, weight_decay=0.0, max_grad_norm=0.0,
        lr_scheduler_type="constant",
    )  # fmt: skip
    flat = FlatParameters(model.adapter_parameters())
    ours = AdamW(flat, settings, len(batches), {"skills": rate, "content": rate})
    theirs = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=rate, weight_decay=0)
    losses = []
    for rows in batches:
        with tape.Tape() as recorded:
            loss = Lm().loss(model, lm_batch(rows))
        recorded.backward(loss.mean)
        ours.update()
        flat.zero_grad()
        out = adapted(**labelled(rows), task_ids=torch.tensor([t for t, _, _ in rows]))
        theirs.zero_grad()
        out.loss.backward()
        theirs.step()
        losses.append((float(tape.data_of(loss.mean)), float(out.loss.detach())))
    found, want = np.array(losses).T
    return found, want
