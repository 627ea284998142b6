"""Loops of others: Trainer of transformers on the real MiniLM beside PEFT, DistributedDataParallel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from real import minilm_folder, real_tasks

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
bridge = pytest.importorskip("polymoe.interop.torch")
PINNED = "ignore:'pin_memory' argument is set as true:UserWarning"
OLDER = "ignore:`gradient_checkpointing` is deprecated:FutureWarning"  # known to every version
pytestmark = pytest.mark.filterwarnings(OLDER, PINNED)

STEPS, B, LENGTH, N_LABELS, N_LAYERS = 50, 8, 24, 3, 3
TASKS = ("boolq", "cb", "rte", "wic")


def rows():
    """Real texts of four tasks in turn, padded to LENGTH tokens, with a column of task ids."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder())
    found = []
    for t, task in enumerate(TASKS):
        lines = (real_tasks("superglue") / f"{task}.train.jsonl").read_text(encoding="utf-8").splitlines()
        examples = [json.loads(line) for line in lines[: STEPS * B // 4]]
        names = sorted({e["output"] for e in examples})
        tokens = tokenizer(
            [e["input"] for e in examples], truncation=True, max_length=LENGTH, padding="max_length"
        )
        found.append(
            [
                {"input_ids": ids, "attention_mask": mask, "labels": names.index(e["output"]), "task_ids": t}
                for ids, mask, e in zip(tokens["input_ids"], tokens["attention_mask"], examples, strict=True)
            ]
        )
    return [row for same in zip(*found, strict=True) for row in same]


class Classifier(torch.nn.Module):
    """The first layers of MiniLM and a fixed head."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.losses = encoder, []
        rng = np.random.default_rng(5)
        self.register_buffer("head", torch.tensor(10 * rng.normal(size=(N_LABELS, 384)), dtype=torch.float32))

    def forward(self, input_ids, attention_mask, labels, task_ids=None):
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "task_ids": task_ids}
        hidden = self.encoder(**given).last_hidden_state
        mask = attention_mask[..., None]
        pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        loss = torch.nn.functional.cross_entropy(pooled @ self.head.T, labels)
        self.losses.append(loss.item())  # what Trainer logs is rounded
        return {"loss": loss}


def minilm():
    return transformers.BertModel.from_pretrained(
        minilm_folder(),
        attn_implementation="eager", add_pooling_layer=False, num_hidden_layers=N_LAYERS,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def train(model, data, output, groups, steps=STEPS, **settings):
    arguments = transformers.TrainingArguments(
        output_dir=str(output), per_device_train_batch_size=B, max_steps=steps, logging_steps=1,
        report_to=[], save_strategy="no", lr_scheduler_type="constant", use_cpu=True, disable_tqdm=True,
        max_grad_norm=0.0, seed=1, train_sampling_strategy="sequential", dataloader_pin_memory=False,
        **settings,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data, optimizers=(torch.optim.AdamW(groups), None)
    )
    trainer.train()
    return np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def groups_of(model):
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    routers = [p for n, p in named if "router" in n]
    others = [p for n, p in named if "router" not in n]
    return [{"params": routers, "lr": 1e-2, "weight_decay": 0.0}, {"params": others, "lr": 1e-3}]


def test_fifty_steps_of_trainer_give_the_losses_of_peft(tmp_path, capsys):
    data = rows()
    ours = bridge.inject(minilm(), "mhr", TASKS, "all-linear", n_splits=2, n_skills=4, r=8, noise="off")
    bridge.save_adapter(ours, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(minilm(), tmp_path / "adapter", is_trainable=True)
    for module in theirs.modules():
        if type(module).__name__ == "PolyRouter":
            module.train = lambda mode=True: None  # PEFT has no other switch for the noise
            module.training = False
    losses = []
    for encoder in (theirs, ours):
        model = Classifier(encoder)
        train(model, data, tmp_path, groups_of(model))
        losses.append(np.array(model.losses))
    expected, got = losses
    assert len(got) == STEPS
    assert got[-8:].mean() < got[:8].mean() - 0.1  # it does learn
    difference = (np.abs(got - expected) / expected).max()
    print(f"largest relative difference of losses {difference:.1e}, {got[0]:.4f} -> {got[-1]:.4f}")
    assert difference < 3e-5


def sequence_classifier(**options):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    )
    bridge.inject(model, "poly", ["a", "b"], **options)
    model.classifier.requires_grad_(True)
    return model


def examples(n=64):
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 60, (n, 6))
    return [
        {"input_ids": row.tolist(), "task_ids": int(i % 2), "labels": int((row[0] > 30) ^ (i % 2)), "line": i}
        for i, row in enumerate(tokens)
    ]


class Listed(torch.utils.data.IterableDataset):
    """Of which Trainer removes the columns that no argument of forward takes ("line")."""

    def __iter__(self):
        yield from examples()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_keeps_the_column_of_task_ids(tmp_path, checkpointing):
    """Of a model whose own forward knows nothing of it, and without remove_unused_columns=False."""
    model = sequence_classifier()
    losses = train(
        model, Listed(), tmp_path, bridge.parameter_groups(model), 12, gradient_checkpointing=checkpointing
    )
    assert np.isfinite(losses).all()
    trained = model.bert.encoder.layer[1].attention.self.query.router.logits
    assert trained.grad is None or trained.grad.shape == (2, 1, 4)
    start = sequence_classifier().bert.encoder.layer[1].attention.self.query.router.logits
    assert (trained - start).abs().max() > 1e-3


def test_trainer_without_task_ids_fails_loudly(tmp_path):
    model = sequence_classifier()
    data = [{k: v for k, v in row.items() if k not in ("task_ids", "line")} for row in examples()]
    with pytest.raises(ValueError, match="task_ids: expected one of"):
        train(model, data, tmp_path, bridge.parameter_groups(model), 2)


def test_trainer_saves_and_resumes(tmp_path):
    data = [{k: v for k, v in row.items() if k != "line"} for row in examples()]

    def run(steps, resume=None):
        model = sequence_classifier(noise="off")
        model.config.hidden_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=6, save_steps=3, report_to=[],
            use_cpu=True, disable_tqdm=True, learning_rate=1e-2, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=data)
        trainer.train(resume_from_checkpoint=resume)
        return {n: p.detach().clone() for n, p in model.named_parameters()}

    whole = run(6)
    again = run(6, str(tmp_path / "checkpoint-3"))
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no gloo between processes here")
@pytest.mark.parametrize("ranks", [1, 2])
def test_distributed_training_sums_what_one_process_does(tmp_path, ranks):
    """Gradients of DistributedDataParallel (gloo), of halves of a batch, are those of the whole."""
    script = Path(__file__).with_name("torch_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), str(ranks), str(tmp_path / "meeting")],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{ranks} ranks agree" in done.stdout
