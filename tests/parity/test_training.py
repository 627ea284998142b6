"""Twenty steps on the real MiniLM against torch + PEFT: same start, same batches, no noise, AdamW."""

import json

import numpy as np
import pytest
from real import minilm_folder, real_tasks
from transformers_side import without_noise

from polymoe import tape
from polymoe.adapters import adapt
from polymoe.batch import Batch
from polymoe.models import load_base
from polymoe.parameters import FlatParameters
from polymoe.tape import Tape
from polymoe.training.config import TrainingConfig
from polymoe.training.optim import AdamW

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

STEPS, B, N_LABELS = 20, 12, 3
TASKS = ("boolq", "cb", "rte", "wic")
RATES = {"skills": 1e-3, "router": 1e-2}
HEAD = np.random.default_rng(5).normal(size=(N_LABELS, 384)).astype(np.float32)


def batches(base):
    """Real texts of four tasks in turn, cut to 64 tokens: (token ids per text, task ids, labels)."""
    folder = real_tasks("superglue")
    tasks = []
    for task in TASKS:
        lines = (folder / f"{task}.train.jsonl").read_text(encoding="utf-8").splitlines()[: STEPS * B // 4]
        rows = [json.loads(line) for line in lines]
        names = sorted({row["output"] for row in rows})
        tasks.append([(row["input"], names.index(row["output"])) for row in rows])
    tokenizer = type(base.tokenizer)(base.tokenizer.tokenizer, 64)
    task_ids = np.arange(B, dtype=np.int64) % 4
    for step in range(STEPS):
        picked = [tasks[t][step * B // 4 + i // 4] for i, t in enumerate(task_ids)]
        tokens = tokenizer.encode([text for text, _ in picked])
        yield tokens, task_ids, np.array([label for _, label in picked])


def ours(model, data):
    parameters = FlatParameters(model.adapter_parameters())
    config = TrainingConfig(
        learning_rate=RATES["skills"], router_learning_rate=RATES["router"], weight_decay=0.01,
        lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    optimizer = AdamW(parameters, config, STEPS)
    model.train()
    losses = []
    for tokens, task_ids, labels in data:
        batch = Batch(tokens.cu_seqlens, tokens.ids.astype(np.int64), task_ids)
        with Tape() as recorded:
            loss = tape.cross_entropy(tape.dense(model.embed(batch), 10 * HEAD), labels)
        recorded.backward(loss)
        optimizer.update()
        parameters.zero_grad()
        losses.append(float(loss.data))
    return np.array(losses)


def theirs(model, data):
    named = [(n, p) for n, p in without_noise(model).named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if "module_logits" in n], "lr": RATES["router"], "weight_decay": 0.0},
        {
            "params": [p for n, p in named if "module_logits" not in n],
            "lr": RATES["skills"],
            "weight_decay": 0.01,
        },
    ]
    optimizer = torch.optim.AdamW(groups)
    head = torch.tensor(10 * HEAD)
    losses = []
    for tokens, task_ids, labels in data:
        lengths = np.diff(tokens.cu_seqlens)
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = tokens.ids
        mask = torch.tensor(mask)
        hidden = model(
            input_ids=torch.tensor(ids), attention_mask=mask.long(), task_ids=torch.tensor(task_ids)
        ).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        embedding = torch.nn.functional.normalize(pooled, dim=-1)
        loss = torch.nn.functional.cross_entropy(embedding @ head.T, torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


@pytest.mark.parametrize(
    ("method", "n_splits", "target_modules"), [("poly", 1, None), ("mhr", 2, "all-linear")]
)
def test_training_agrees_with_peft_for_20_steps(method, n_splits, target_modules, tmp_path):
    folder = minilm_folder()
    base = load_base(folder)
    data = list(batches(base))
    model = adapt(
        base, method, TASKS, r=8, n_skills=4, n_splits=n_splits, noise="off", target_modules=target_modules
    )
    model.save_adapter(tmp_path / "adapter")
    bert = transformers.BertModel.from_pretrained(
        folder, attn_implementation="eager", add_pooling_layer=False
    )
    bert.eval()
    adapted = peft.PeftModel.from_pretrained(bert, tmp_path / "adapter", is_trainable=True)
    expected = theirs(adapted, data)
    got = ours(model, data)
    assert (
        expected[-4:].mean() < expected[:4].mean() - 0.1
    )  # it does learn: 20 equal numbers would prove little
    difference = np.abs(got - expected) / expected
    losses = f"losses {expected[0]:.4f} -> {expected[-1]:.4f}"
    print(f"{method}: largest relative difference {difference.max():.1e}, {losses}")
    np.testing.assert_array_less(difference, 1e-5)
