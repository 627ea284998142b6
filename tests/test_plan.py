"""`polymoe plan`: what it says of a run is what the run takes, and it reads no weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from real import minilm_folder
from tiny_bert import write_bert
from tiny_llama import write_llama
from tiny_t5 import write_t5
from training_base import base_folder, classes, write_tasks

from polymoe import cli
from polymoe.models import load_base
from polymoe.recipe import Recipe
from polymoe.training import Callback
from polymoe.training.plan import Cost, frozen_bytes, recommend
from polymoe.training.plan_writing import evaluations, plan_writing

GIB = 2**30
as_it_is = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer takes memory and time of its own"
)


CLOCK = (
    "import sys, time; time.perf_counter = time.process_time; "
    "from polymoe.cli import main; main(sys.argv[1:])"
)


def child(*argv: object) -> dict:
    """What a verb prints in a process of its own, with one thread, whose CPU time is its clock: others may
    compute beside it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CLOCK, *map(str, argv), "--json"],
        env=environment, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def write_words(folder: Path, n: int, words: int) -> Path:
    """Two tasks, of n texts with that many words each."""
    folder.mkdir(exist_ok=True)
    for task in ("animal", "colour"):
        rows = [(" ".join(["the cat sees a red house"] * (words // 6)), str(i % 2)) for i in range(n)]
        write_tasks(folder, {task: {"train": rows, "valid": rows[:2], "test": rows[:2]}})
    return folder


class Evaluations(Callback):
    """Keeps which splits were evaluated, and whether texts were written."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bool]] = []

    def on_evaluate(self, trainer, split, evaluation) -> None:
        self.found.append((split, "exact_match" in evaluation["mean"]))


def cost(dtype: str, again: bool, gib: float, seconds: float) -> Cost:
    each = round(gib * GIB / 4)
    return Cost(dtype, again, each, 0, each, each, 0, each, 4 * each, seconds, 10 * seconds, 0.0)


def costs(gain: float = 1.9) -> list[Cost]:
    """Of a run that takes 8 GiB in float32."""
    return [
        cost("float32", False, 8, 1.0), cost("float32", True, 5, 1.3),
        cost("bfloat16", False, 6, 1 / gain), cost("bfloat16", True, 3, 1.3 / gain),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("free", "gain", "dtype", "again"),
    [
        (20, 1.0, "float32", False),
        (20, 1.9, "bfloat16", False),
        (7, 1.0, "bfloat16", False),  # sooner than to compute all blocks twice
        (7, 0.5, "float32", True),
        (4, 1.0, "bfloat16", True),
        (None, 1.0, "float32", False),
    ],
)
def test_the_fastest_that_fits_is_recommended(free, gain, dtype, again):
    settings, _ = recommend(costs(gain), 4096, None if free is None else free * GIB)
    assert settings == {"dtype": dtype, "gradient_checkpointing": again}


def test_where_nothing_fits_batches_get_smaller_or_it_says_so():
    settings, reason = recommend(costs(), 4096, round(2.5 * GIB))
    # 3 GiB, half of which grow with the tokens; 2.25 are left for it
    assert settings == {"dtype": "bfloat16", "gradient_checkpointing": True, "batch_tokens": 2048}
    assert "gradient-accumulation-steps" in reason
    settings, reason = recommend(costs(), 4096, GIB)
    assert settings == {} and "nothing fits in 0.90 GiB" in reason


@pytest.mark.parametrize("write", [write_bert, write_llama, write_t5])
def test_an_outline_has_the_sizes_of_the_base_and_reads_no_weights(tmp_path, write):
    whole = load_base(write(tmp_path / "base"))
    (tmp_path / "base" / "model.safetensors").unlink()
    outline = load_base(tmp_path / "base", outline=True)
    assert frozen_bytes(outline) == frozen_bytes(whole)
    assert [name for name, _ in outline.named_modules()] == [name for name, _ in whole.named_modules()]


@pytest.mark.parametrize("objective", ["classify", "match"])
def test_a_plan_knows_the_run(tmp_path, objective):
    data, base = write_tasks(tmp_path, classes()), base_folder(tmp_path / "base")
    settings = {"epochs": 3, "batch_size": 8, "gradient_accumulation_steps": 2}
    recipe = Recipe.from_dict({"base": str(base), "data": data, "objective": objective, "training": settings})
    plan, trainer = recipe.plan(), recipe.trainer(tmp_path / "run", progress=None)
    assert not (tmp_path / "run").exists()
    assert (plan.trainable_parameters, plan.steps) == (trainer.n_trainable, trainer.total_steps)
    assert plan.steps == 3 * plan.steps_per_epoch
    reads = [
        trainer.objective.batch(trainer.model, trainer.train_split, indices, 0, 0).n_read
        for indices in trainer.plan(0)
    ]
    assert plan.batch_tokens in reads
    assert [(c.dtype, c.gradient_checkpointing) for c in plan.costs] == [
        ("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True),
    ]  # fmt: skip
    for c in plan.costs:
        assert c.bytes == c.weights + c.adapter + c.activations + c.temporary + c.writing + c.process
        assert c.epoch_seconds == pytest.approx(c.step_seconds * plan.steps_per_epoch)
        assert min(c.weights, c.adapter, c.activations, c.temporary, c.step_seconds) > 0
        assert c.writing == c.evaluation_seconds == 0  # of objectives that write nothing
    plain, again, half, _ = plan.costs
    assert again.activations < plain.activations / 2
    assert half.weights < plain.weights and plain.adapter >= 16 * plan.trainable_parameters


def short_run(folder: Path, base: Path, words: int) -> list[object]:
    """Flags of a run of two steps on texts of so many words."""
    data = write_words(folder / "data", 64, words)
    run = ["--base", base, "--method", "poly", "--objective", "classify", "--max-steps", 2]
    return [*run, "--data", data]


@as_it_is
def test_the_peak_of_a_tiny_run_is_what_was_planned(tmp_path):
    flags = short_run(tmp_path, base_folder(tmp_path / "base"), 6)
    plan, summary = child("plan", *flags), child("train", *flags, "--output", tmp_path / "run")
    assert plan["costs"][0]["bytes"] == pytest.approx(summary["peak_rss_bytes"], rel=0.25)


@as_it_is
def test_peak_and_time_of_minilm_runs_are_what_was_planned(tmp_path):
    flags = short_run(tmp_path, minilm_folder(), 126)
    plan = child("plan", *flags)
    assert plan["batch_tokens"] == 4096
    for cost, more in zip(plan["costs"], ([], ["--gradient-checkpointing"]), strict=False):
        summary = child("train", *flags, *more, "--output", tmp_path / f"run{len(more)}")
        assert cost["gradient_checkpointing"] == bool(more)
        assert cost["bytes"] == pytest.approx(summary["peak_rss_bytes"], rel=0.25)
        assert 0.5 < cost["step_seconds"] / (summary["train_seconds"] / summary["steps"]) < 2


WRITES = {"max_new_tokens": 5}


@pytest.mark.parametrize(
    ("lm", "training"),
    [
        (WRITES, {"epochs": 2}),
        (WRITES | {"evaluate_before": True}, {"max_steps": 5, "eval_steps": 2}),
        (WRITES, {"epochs": 1, "metric_for_best_model": "exact_match"}),
    ],
)
def test_a_plan_knows_which_evaluations_write(tmp_path, lm, training):
    """Those of the run, in number and kind; the caches of a batch are as large as its texts may get."""
    base = write_llama(tmp_path / "base", max_position_embeddings=160)
    data, training = write_tasks(tmp_path, classes()), {"batch_size": 8, **training}
    recipe = Recipe.from_dict(
        {"base": str(base), "data": data, "objective": "lm", "lm": lm, "training": training}
    )
    met = Evaluations()
    trainer = recipe.trainer(tmp_path / "run", progress=None, callbacks=[met])
    names = {id(trainer.valid_split): "valid", id(trainer.test_split): "test"}
    planned = [(names[id(split)], writes) for split, writes in evaluations(trainer)]
    found, prompts = plan_writing(trainer, trainer.model, 0.1), trainer.test_split.prompt_lengths
    trainer.train()
    assert sorted(planned) == sorted(met.found)
    a_token = 2 * 2 * (2 * 6) * 4  # keys and values of two layers, two heads of 6 float32 each
    assert found.caches == a_token * (int(prompts.sum()) + 5 * len(prompts))
    assert found.seconds > 0 and found.blocks > 0
    for c in recipe.plan().costs:
        assert c.writing >= 2 * found.caches and c.evaluation_seconds > 0
        assert c.bytes == c.weights + c.adapter + c.activations + c.temporary + c.writing + c.process


def test_the_verb_prints_a_table_and_takes_a_recipe(tmp_path, capsys):
    write_tasks(tmp_path, classes())
    recipe = {"base": str(base_folder(tmp_path / "base")), "data": str(tmp_path), "method": "mhr"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    cli.main(["plan", str(tmp_path / "recipe.yaml"), "--epochs", "2"])
    out = capsys.readouterr().out
    assert "frozen weights" in out and "seconds an epoch" in out and "mhr on" in out
    assert "recommended: --dtype " in out and "evaluation" not in out
    recipe |= {"base": str(write_llama(tmp_path / "llama")), "objective": "lm", "method": "poly"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"lm": {"max_new_tokens": 4}}))
    cli.main(["plan", str(tmp_path / "recipe.yaml")])
    out = capsys.readouterr().out
    assert "texts that are written" in out and "seconds evaluating, at most" in out


@pytest.mark.parametrize("wrong", ["recipe", "base", "family", "data"])
def test_what_is_wrong_is_told_as_training_tells_it(tmp_path, capsys, wrong):
    data, base = write_tasks(tmp_path, classes()), base_folder(tmp_path / "base")
    flags = ["--base", str(base), "--data", data]
    if wrong == "recipe":
        flags = [str(tmp_path / "none.yaml")]
    elif wrong == "base":
        flags[1] = str(tmp_path / "nowhere")
    elif wrong == "family":
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    else:
        flags = flags[:2]
    told = []
    for verb in ("train", "plan"):
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, *flags])
        told.append((stop.value.code, capsys.readouterr().err.removeprefix(f"polymoe {verb}: ")))
    assert told[0] == told[1] and told[0][0] == 1


@pytest.mark.parametrize(("first", "method"), [("poly", "poly"), ("private", "arrow")])
def test_a_run_that_starts_from_another_is_planned(tmp_path, first, method):
    """The adapter belongs to the base with its weights; arrow trains nothing more."""
    data, base = write_tasks(tmp_path, classes()), base_folder(tmp_path / "base")
    recipe = Recipe.from_dict({"base": str(base), "data": data, "method": first, "training": {"epochs": 1}})
    recipe.train(tmp_path / "run", progress=None)
    plan = replace(recipe, method=method, init_from=(str(tmp_path / "run"),)).plan()
    assert plan.method == method and (plan.steps == 0) == (method == "arrow")
