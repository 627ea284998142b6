"""The trainer: it learns, it stops and goes on without a trace, and it never loses anything."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_base import (
    Records,
    classes,
    labelled,
    make_model,
    make_trainer,
    numbers,
    press_ctrl_c,
    texts,
)

from polymoe import functional as F
from polymoe import tape
from polymoe.data import read_tasks
from polymoe.training import Callback, Trainer, TrainingConfig, TrainingInterrupted, load_run

DATA = {"classify": classes, "match": texts, "regress": numbers}


def bits(trainer: Trainer) -> bytes:
    """Parameters and moments."""
    return trainer.parameters.data.tobytes() + trainer.optimizer.m.tobytes() + trainer.optimizer.v.tobytes()


def test_training_learns_and_writes_the_run(tmp_path: Path) -> None:
    data = {"animal": labelled(160, ["cat", "dog"], 1), "colour": labelled(160, ["red", "blue"], 3)}
    tests = {"animal": labelled(30, ["cat", "dog"], 2), "colour": labelled(30, ["red", "blue"], 4)}
    both = {name: {"train": data[name], "test": tests[name]} for name in data}
    trainer = make_trainer(tmp_path, data=both, method="lora", epochs=15, learning_rate=1e-2)
    summary = trainer.train()
    assert summary["evaluation"]["mean"]["accuracy"] > 0.85
    run = tmp_path / "run"
    assert sorted(p.name for p in run.iterdir()) == [
        "adapter", "checkpoints", "metrics.jsonl", "recipe.yaml", "summary.json",
    ]  # fmt: skip
    assert {p.name for p in (run / "adapter").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "polymoe.json", "heads.safetensors",
        "objective.json",
    }  # fmt: skip
    assert json.loads((run / "summary.json").read_text()) == summary
    assert summary["steps"] == trainer.total_steps
    assert summary["trainable_parameters"] == trainer.n_trainable
    assert summary["real_tokens"] > 0 < summary["tokens_per_second"]
    assert summary["peak_rss_bytes"] > 1e6
    assert set(summary["evaluation"]["tasks"]) == {"animal", "colour"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, trainer.total_steps + 1))
    assert np.mean([line["loss"] for line in steps[-5:]]) < 0.3 * steps[0]["loss"]
    assert set(steps[0]) >= {"epoch", "lr", "grad_norm", "tokens", "seconds", "tasks"}
    splits = [line["split"] for line in lines if "split" in line]
    assert splits == ["valid"] * 15 + ["test"]


@pytest.mark.parametrize(
    ("objective", "accumulation", "stop_at", "method"),
    [
        ("classify", 1, 3, "poly"),
        ("classify", 1, "epoch", "mhr"),  # right at the border of the first epoch
        ("classify", 3, 4, "poly"),  # amid an accumulation
        ("match", 2, 12, "poly"),  # in the second epoch
        ("regress", 1, 6, "private"),
    ],
)
def test_resumed_training_is_bitwise_that_of_an_uninterrupted_run(
    tmp_path: Path, objective: str, accumulation: int, stop_at: int | str, method: str
) -> None:
    def trainer(output: str, records: Records) -> Trainer:
        return make_trainer(
            tmp_path, objective, DATA[objective](), output=output, method=method, callbacks=(records,),
            gradient_accumulation_steps=accumulation, weight_decay=0.1,
        )  # fmt: skip

    whole_records, parts_records = Records(), Records()
    whole = trainer("whole", whole_records)
    expected = whole.train()
    first = trainer("parts", parts_records)
    press_ctrl_c(first, len(first.plan(0)) - 1 if stop_at == "epoch" else int(stop_at))
    with pytest.raises(TrainingInterrupted, match="resume=True") as stopped:
        first.train()
    assert stopped.value.checkpoint.is_dir()
    second = trainer("parts", parts_records)
    summary = second.train(resume=True)
    assert bits(second) == bits(whole)
    assert parts_records.records == whole_records.records
    for name in ("evaluation", "evaluation_before", "validation", "real_tokens", "best_step", "steps"):
        assert summary[name] == expected[name]
    for file in ("adapter_model.safetensors", "heads.safetensors", "objective.json"):
        assert (tmp_path / "parts/adapter" / file).read_bytes() == (
            tmp_path / "whole/adapter" / file
        ).read_bytes()
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    assert [json.loads(x)["step"] for x in lines[0]] == [json.loads(x)["step"] for x in lines[1]]


@pytest.mark.parametrize("objective", list(DATA))
def test_training_gives_the_same_bits_for_any_number_of_threads(
    tmp_path: Path, objective: str, threads: Any
) -> None:
    results = []
    for n in (1, 2, 3, 4):
        threads(n)
        trainer = make_trainer(
            tmp_path, objective, DATA[objective](), output=f"run{n}", batch_size=16, batch_tokens=200
        )
        summary = trainer.train()
        results.append((bits(trainer), summary["evaluation"]))
    assert all(result == results[0] for result in results[1:])


def test_resume_after_the_machine_went_down_drops_what_runs_again(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path, output="whole", save_steps=4)
    whole.train()

    class PowerCut(Callback):
        def on_step_end(self, trainer: Trainer, record: Any) -> None:
            if record["step"] == 6:
                with open(trainer.folder.metrics, "a") as file:
                    file.write('{"step": 7, "lo')
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(tmp_path, save_steps=4, callbacks=(PowerCut(),)).train()
    again = make_trainer(tmp_path, save_steps=4)
    again.train(resume=True)
    assert bits(again) == bits(whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [
        json.loads(line)["step"] for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]


def test_resume_of_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    first = make_trainer(tmp_path)
    summary = first.train()
    records = Records()
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    again = make_trainer(tmp_path, callbacks=(records,), save_total_limit=1).train(resume=True)
    assert records.records == []
    assert (tmp_path / "run/metrics.jsonl").read_text().splitlines() == lines
    assert again["evaluation"] == summary["evaluation"]
    assert again["steps"] == summary["steps"]


def test_resume_refuses_other_settings_or_data(tmp_path: Path) -> None:
    make_trainer(tmp_path).train()
    with pytest.raises(ValueError, match=r"learning_rate = None, got 0\.5"):
        make_trainer(tmp_path, learning_rate=0.5).train(resume=True)
    other = classes()
    other["animal"]["train"] = labelled(40, ["cat", "dog"], 7)
    with pytest.raises(ValueError, match="resume: expected the data"):
        make_trainer(tmp_path, data=other).train(resume=True)
    with pytest.raises(ValueError, match="other names or shapes"):
        make_trainer(tmp_path, model=make_model(tmp_path / "base", "lora", r=3)).train(resume=True)


def test_output_that_holds_a_run_is_refused_unless_overwritten(tmp_path: Path) -> None:
    make_trainer(tmp_path).train()
    (tmp_path / "run/notes.txt").write_text("mine")
    before = (tmp_path / "run/summary.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"--resume .*--overwrite"):
        make_trainer(tmp_path).train()
    assert (tmp_path / "run/summary.json").read_bytes() == before
    make_trainer(tmp_path, epochs=1).train(overwrite=True)
    assert json.loads((tmp_path / "run/summary.json").read_text())["epochs"] == 1
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    again = make_trainer(tmp_path, output="again", epochs=1)
    again.train()
    with pytest.raises(RuntimeError, match="expected a new Trainer"):
        again.train(overwrite=True)
    assert (tmp_path / "again/summary.json").exists()
    with pytest.raises(ValueError, match="at most one"):
        make_trainer(tmp_path).train(resume=True, overwrite=True)


def test_output_is_checked_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="expected a run to resume"):
        make_trainer(tmp_path).train(resume=True)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileExistsError, match="expected a folder"):
        make_trainer(tmp_path, output="file").train()

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("polymoe.training.folder.tempfile.TemporaryFile", refused)
    records = Records()
    with pytest.raises(PermissionError, match="expected a folder that can be written"):
        make_trainer(tmp_path, callbacks=(records,)).train()
    assert records.records == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_output_is_a_permission_error(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, output="locked/run")
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(PermissionError, match="expected a folder that can be written"):
        trainer.train()


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_trainer(tmp_path, output="whole")
    whole.train()
    full = False
    fsync = os.fsync

    def sync(handle: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    class Fills(Callback):
        def on_save(self, trainer: Trainer, folder: Path) -> None:
            nonlocal full
            full = True

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="No space left"):
        make_trainer(tmp_path, callbacks=(Fills(),)).train()
    full = False
    assert len(list((tmp_path / "run/checkpoints").glob("step-*"))) == 1
    assert not list((tmp_path / "run/checkpoints").glob(".step-*"))
    assert load_run(tmp_path / "run").evaluate(classes())["mean"]
    again = make_trainer(tmp_path)
    again.train(resume=True)
    assert bits(again) == bits(whole)


def test_loss_that_is_not_finite_stops_before_any_change(tmp_path: Path) -> None:
    poisoned = b""

    class Poison(Callback):
        def on_step_end(self, trainer: Trainer, record: Any) -> None:
            nonlocal poisoned
            if record["step"] == 10:
                start = trainer.objective.ranges["animal"][0]  # type: ignore[attr-defined]
                trainer.objective.weight.data[start, 0] = np.nan  # type: ignore[attr-defined]
                poisoned = bits(trainer)

    trainer = make_trainer(tmp_path, callbacks=(Poison(),))
    with pytest.raises(FloatingPointError, match=r"got nan at step 1\d \(tasks: animal\)") as error:
        trainer.train()
    assert f"parameters are those of step {trainer.step}" in str(error.value)
    assert str(tmp_path / "run/checkpoints/step-") in str(error.value)
    assert trainer.step >= 10
    if trainer.step == 10:
        assert bits(trainer) == poisoned


def test_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    before = bits(trainer)
    trainer.parameters.grad[trainer.optimizer.segments[-1].offset] = np.inf
    with pytest.raises(FloatingPointError, match="gradient: expected a finite norm, got inf"):
        trainer.optimizer.update()
    assert bits(trainer) == before
    assert trainer.optimizer.step == 0


def test_accumulated_batches_equal_one_batch_of_all_examples(tmp_path: Path) -> None:
    trainers = []
    for accumulation in (1, 2):
        trainer = make_trainer(
            tmp_path, output=f"run{accumulation}", method="lora", gradient_accumulation_steps=accumulation,
            max_steps=5, warmup_ratio=0.0,
        )  # fmt: skip
        sizes = [[12], [4, 8]][accumulation - 1]  # unequal on purpose
        order = np.arange(12)
        trainer.plan = lambda epoch, s=sizes, o=order: np.split(o, np.cumsum(s)[:-1])  # type: ignore[assignment,misc]
        trainer.train()
        trainers.append(trainer)
    np.testing.assert_allclose(trainers[0].parameters.data, trainers[1].parameters.data, rtol=1e-3, atol=2e-5)


def test_groups_have_their_own_rates_and_decay(tmp_path: Path) -> None:
    records = Records()
    trainer = make_trainer(
        tmp_path, callbacks=(records,), warmup_steps=2, learning_rate=1.0, router_learning_rate=2.0,
        head_learning_rate=4.0, weight_decay=0.5, max_steps=4,
    )  # fmt: skip
    decays = dict(zip((s.name for s in trainer.optimizer.segments), trainer.optimizer._decays, strict=True))
    for segment in trainer.optimizer.segments:
        decayed = segment.group in ("skills", "heads") and len(segment.shape) > 1
        assert decays[segment.name] == (0.5 if decayed else 0.0)
    assert {s.group for s in trainer.optimizer.segments} == {"router", "skills", "heads"}
    trainer.train()
    factors = [0.0, 0.5, 1.0, 0.5]
    for record, factor in zip(records.records, factors, strict=True):
        assert record["lr"] == {"router": 2 * factor, "skills": factor, "heads": 4 * factor}


def test_one_update_is_adamw_on_the_clipped_gradient(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, warmup_ratio=0.0, weight_decay=0.1, max_grad_norm=0.5)
    p, rng = trainer.parameters, np.random.default_rng(0)
    for segment in p.segments:
        p.view(p.grad, segment)[...] = rng.normal(size=segment.shape)
    before, grad = p.data.astype(np.float64), p.grad.astype(np.float64)
    update = trainer.optimizer.update(4)
    assert update.grad_norm == pytest.approx(np.linalg.norm(grad / 4), rel=1e-6)
    g = grad / 4 * min(1.0, 0.5 / (update.grad_norm + 1e-6))
    for segment, decay in zip(trainer.optimizer.segments, trainer.optimizer._decays, strict=True):
        s, lr = slice(segment.offset, segment.offset + segment.length), update.learning_rates[segment.group]
        expected = before[s] * (1 - lr * decay) - lr * g[s] / (np.abs(g[s]) + 1e-8)
        np.testing.assert_allclose(p.data[s], expected, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_keep_every_bit(tmp_path: Path) -> None:
    model = make_model(tmp_path / "base")
    frozen = [p for name, p in model.adapter_parameters() if name.endswith("logits")]
    for p in frozen:
        p.trainable = False
    before = [p.data.copy() for p in frozen]
    trainer = make_trainer(tmp_path, model=model)
    trainer.train()
    assert frozen
    assert all(np.array_equal(p.data, b) for p, b in zip(frozen, before, strict=True))
    assert trainer.n_trainable == sum(s.length for s in trainer.parameters.segments if s.group != "router")


def test_callbacks_hear_everything_in_order(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listener(Callback):
        def on_train_begin(self, trainer: Trainer) -> None:
            heard.append("begin")

        def on_step_end(self, trainer: Trainer, record: Any) -> None:
            heard.append("step")

        def on_evaluate(self, trainer: Trainer, split: str, evaluation: Any) -> None:
            heard.append(split)

        def on_save(self, trainer: Trainer, folder: Path) -> None:
            assert (folder / "state.json").exists()
            heard.append("save")

        def on_train_end(self, trainer: Trainer, summary: Any) -> None:
            heard.append("end")

        def close(self) -> None:
            heard.append("close")

    make_trainer(tmp_path, callbacks=(Listener(),), max_steps=4, eval_steps=2, save_steps=1).train()
    told = ["begin", "step", "save", "step", "valid", "save", "step", "save", "step", "valid", "save", "test"]
    assert heard == [*told, "end", "close"]


def scripted(trainer: Trainer, values: list[float]) -> None:
    """Make the evaluations on validation give these accuracies, in order."""
    evaluate, given = trainer.objective.evaluate, iter(values)

    def fake(model: Any, split: Any, **options: Any) -> Any:
        if split is not trainer.valid_split:
            return evaluate(model, split, **options)
        return {"tasks": {}, "mean": {"accuracy": next(given)}}

    trainer.objective.evaluate = fake  # type: ignore[method-assign,assignment]


def test_best_weights_are_put_back_and_last_checkpoints_kept(tmp_path: Path) -> None:
    kept: dict[int, bytes] = {}

    class Keep(Callback):
        def on_evaluate(self, trainer: Trainer, split: str, evaluation: Any) -> None:
            kept[trainer.step] = trainer.parameters.data.tobytes()

    trainer = make_trainer(tmp_path, callbacks=(Keep(),), max_steps=6, eval_steps=1, save_total_limit=2)
    scripted(trainer, [0.1, 0.9, 0.9, 0.2, 0.3, 0.4])  # the first of equals is kept
    summary = trainer.train()
    assert summary["best_step"] == 2
    assert trainer.parameters.data.tobytes() == kept[2]
    names = {p.name for p in (tmp_path / "run/checkpoints").iterdir()}
    assert names == {"step-2", "step-5", "step-6", "latest", "best"}
    assert trainer.folder.pointed("best") == tmp_path / "run/checkpoints/step-2"
    assert load_run(tmp_path / "run").evaluate(classes()) == summary["evaluation"]


def test_early_stopping_waits_for_its_patience(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=20, eval_steps=1, early_stopping_patience=2)
    scripted(trainer, [0.5, 0.4, 0.6, 0.6, 0.5, 0.9])
    summary = trainer.train()
    assert summary["steps"] == 5
    assert summary["stopped_early"]
    assert summary["best_step"] == 3


def test_selection_never_reads_test(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=3, eval_steps=1)
    seen: list[str] = []
    evaluate = trainer.objective.evaluate

    def spy(model: Any, split: Any, **options: Any) -> Any:
        seen.append("test" if split is trainer.test_split else "valid")
        return evaluate(model, split, **options)

    trainer.objective.evaluate = spy  # type: ignore[method-assign]
    trainer.train()
    assert seen == ["valid", "valid", "valid", "test"]


@pytest.mark.parametrize("progress", ["lines", "bar"])
def test_progress_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str], progress: Any) -> None:
    model = make_model(tmp_path / "base")
    config = TrainingConfig(max_steps=3)
    Trainer(model, read_tasks(classes()), "classify", config, tmp_path / "run", progress=progress).train()
    out, err = capsys.readouterr()
    assert out == ""
    assert "valid  accuracy" in err
    assert ("step 3/3" in err) if progress == "lines" else ("3/3" in err)


def test_an_interrupted_run_can_be_loaded(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    press_ctrl_c(trainer, 2)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
        trainer.train()
    run = load_run(tmp_path / "run")
    texts = ["the cat sees", "a red house"]
    expected = trainer.objective.predict(trainer.model, texts, ["animal", "colour"])
    assert run.predict(texts, ["animal", "colour"]) == expected


def test_trainer_refuses_what_cannot_be_trained(tmp_path: Path) -> None:
    model = make_model(tmp_path / "base")
    with pytest.raises(KeyError, match=r"expected one of \['animal', 'colour'\], got 'shape'"):
        Trainer(model, {"shape": classes()["animal"]}, "classify", output=tmp_path / "run")
    with pytest.raises(ValueError, match="objective: expected one of"):
        Trainer(model, classes(), "guess", output=tmp_path / "run")
    with pytest.raises(ValueError, match="metric_for_best_model: expected one of"):
        make_trainer(tmp_path, metric_for_best_model="pearson")
    one = {**classes(), "colour": [("a red house", "red"), ("the red dog", "red")]}
    with pytest.raises(ValueError, match="colour: expected at least two different outputs"):
        make_trainer(tmp_path, data=one)
    assert not (tmp_path / "run").exists()


def test_noise_is_off_in_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.model.train()
    first = trainer.objective.evaluate(trainer.model, trainer.test_split)
    assert trainer.model.training
    trainer.model.eval()
    assert trainer.objective.evaluate(trainer.model, trainer.test_split) == first


def test_norm_is_that_of_trainable_segments(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.parameters.grad[:] = 1.0
    assert trainer.optimizer.grad_norm() == pytest.approx(np.sqrt(trainer.n_trainable))
    offsets = [s.offset for s in trainer.parameters.segments]
    lengths = [s.length for s in trainer.parameters.segments]
    assert F.global_norm(trainer.parameters.grad, offsets, lengths) == trainer.optimizer.grad_norm()


def test_auxiliary_losses_are_trained_reported_and_resumed(tmp_path):
    trainer = make_trainer(tmp_path, method="mola", gradient_accumulation_steps=2, output="whole")
    records = Records()
    trainer.callbacks.append(records)
    trainer.train()
    assert all(record["auxiliary_loss"] > 0 for record in records.records)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["auxiliary_loss"] for line in lines if "auxiliary_loss" in line] == [
        record["auxiliary_loss"] for record in records.records
    ]
    stopped = make_trainer(tmp_path, method="mola", gradient_accumulation_steps=2, output="stopped")
    press_ctrl_c(stopped, 2)  # in the middle of a window
    with pytest.raises(TrainingInterrupted):
        stopped.train()
    again, resumed = (
        make_trainer(tmp_path, method="mola", gradient_accumulation_steps=2, output="stopped"),
        Records(),
    )
    again.callbacks.append(resumed)
    again.train(resume=True)
    assert resumed.records == records.records[-len(resumed.records) :]
    assert again.parameters.data.tobytes() == trainer.parameters.data.tobytes()
    plain = make_trainer(tmp_path, method="poly", output="plain")
    plain.train()
    assert "auxiliary_loss" not in (tmp_path / "plain" / "metrics.jsonl").read_text()


def test_auxiliary_losses_are_weighted_as_the_loss():
    a = tape.Node(np.array([2.0]))
    with tape.Tape() as recorded:
        y = tape.reshape(a, ())
        tape.auxiliary(tape.multiply(tape.reshape(a, ()), np.array(3.0)))
    assert recorded.auxiliary_loss() == 6.0
    recorded.backward(y, np.asarray(4.0))
    np.testing.assert_array_equal(a.grad, [16.0])  # 4 * (1 + 3)


@pytest.mark.parametrize("place", ["../../other", "/etc", ".."])
def test_a_pointer_out_of_the_run_is_refused(tmp_path: Path, place: str) -> None:
    make_trainer(tmp_path, max_steps=2).train()
    (tmp_path / "run/checkpoints/latest").write_text(place)
    with pytest.raises(ValueError, match="latest: expected the name of a checkpoint, got"):
        make_trainer(tmp_path, max_steps=2).train(resume=True)
