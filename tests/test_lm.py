"""The objective lm: prompts, the loss on targets alone, training, what it evaluates, predicts and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
from training_base import TASKS, Records, classes, labelled

from polymoe import functional as F
from polymoe.adapters import adapt, configure
from polymoe.batch import Batch
from polymoe.data import read_tasks
from polymoe.data.chat import ChatTemplate
from polymoe.data.prompts import Context, Prompt, Template, encode_prompts, end_of_answer
from polymoe.models import Llama, LlamaConfig, load_base
from polymoe.models.likelihood import likelihoods
from polymoe.models.search import log_softmax
from polymoe.tape import Tape, data_of
from polymoe.training import Trainer, TrainingConfig, load_run
from polymoe.training.metrics import best_match, rouge
from polymoe.training.objectives import Lm, LmOptions

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def folder(tmp: Path, **config: Any) -> Path:
    """The tiny Llama, with room for texts of bytes and a chat template."""
    path = tiny_llama.write_llama(tmp / "base", **{"max_position_embeddings": 160} | config)
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT}))
    return path


def make_model(tmp: Path, method: str = "poly", **overrides: Any) -> Any:
    settings = {"r": 4, "target_modules": "all-linear"} | overrides
    return adapt(load_base(folder(tmp)), method, TASKS, **settings)


def make_trainer(tmp: Path, objective: Any = None, output: str = "run", **config: Any) -> Trainer:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 8} | config
    return Trainer(
        make_model(tmp), classes(), objective or Lm(max_new_tokens=4), TrainingConfig(**settings),
        tmp / output, progress=None,
    )  # fmt: skip


def prepared(tmp: Path, data: Any = None, method: Any = "poly", **options: Any) -> tuple[Any, Lm, Any]:
    """A model, the objective and its data."""
    model, tasks, objective = make_model(tmp, method), read_tasks(data or classes()), Lm(**options)
    objective.prepare(model, tasks)
    return model.eval(), objective, tasks


# ---- prompts


def test_templates_say_what_is_read_and_written() -> None:
    context = Context("Name the animal.", (("a cat", "cat"),))
    plain = Template("plain", " -> ").prompt("a dog", Context())
    assert plain == Prompt("a dog -> ", 0, 5)
    instruction = Template("instruction", demonstrations=1)
    prompt = instruction.prompt("a dog", context)
    assert prompt.text == (
        "Definition: Name the animal.\n\nExample 1\nInput: a cat\nOutput: cat\n\nInput: a dog\nOutput:"
    )
    assert prompt.text[prompt.start : prompt.end] == "a dog" and instruction.output("dog") == " dog"
    chat = Template("chat", demonstrations=1, chat=ChatTemplate(CHAT, "<s>", "</s>"))
    prompt = chat.prompt(" a dog ", context)
    assert prompt.text == ("<s>[user] Name the animal.\n\na cat[assistant] cat</s>[user] a dog[assistant] ")
    assert prompt.text[prompt.start : prompt.end] == "a dog"


def test_a_long_prompt_loses_the_end_of_its_input(tmp_path: Path) -> None:
    tokenizer = load_base(folder(tmp_path)).tokenizer
    text = "ab" * 30
    prompt = Prompt(f"Input: {text}\nOutput:", 7, 67)
    (whole,), (cut,), (tight,) = (encode_prompts([prompt], tokenizer, [n]) for n in (90, 40, 5))
    assert not whole.cut and cut.cut and tight.cut
    assert tokenizer.decode(whole.ids) == prompt.text and whole.ids[0] == 1
    assert len(cut.ids) == 40 and cut.ids[0] == 1
    assert tokenizer.decode(cut.ids) == f"Input: {text[: 40 - 1 - 7 - 8]}\nOutput:"
    assert len(tight.ids) == 5 and tokenizer.decode(tight.ids) == "put:"


def test_natural_instructions_bring_definition_and_demonstrations(tmp_path: Path) -> None:
    content = {
        "Definition": ["Say it", "again."],
        "Positive Examples": [{"input": "x", "output": "y", "explanation": "z"}],
        "Instances": [{"input": str(i), "output": [str(i)]} for i in range(9)],
    }
    (tmp_path / "echo.json").write_text(json.dumps(content))
    task = read_tasks(tmp_path)["echo"]
    assert task.definition == "Say it\nagain." and task.demonstrations == (("x", "y"),)
    (tmp_path / "echo.json").write_text(json.dumps(content | {"Positive Examples": "none"}))
    with pytest.raises(TypeError, match="Positive Examples: expected a list, got str"):
        read_tasks(tmp_path)


def test_the_end_of_an_answer_is_what_the_template_puts_there(tmp_path: Path) -> None:
    tokenizer = load_base(folder(tmp_path)).tokenizer
    assert end_of_answer(None, tokenizer, (2, 1)) == [2]
    assert end_of_answer(None, tokenizer, ()) == []
    assert end_of_answer(ChatTemplate(CHAT, "", "<s>"), tokenizer, (2, 1)) == [1]


def test_a_broken_chat_template_is_refused() -> None:
    with pytest.raises(ValueError, match="chat_template: expected a Jinja template, got"):
        ChatTemplate("{% for %}")
    with pytest.raises(ValueError, match="chat_template: expected a conversation that it takes, got no user"):
        ChatTemplate("{{ raise_exception('no user') }}")([])


# ---- loss


def expected_losses(model: Any, objective: Lm, split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sums over target tokens, and their numbers, one example at a time, from all logits."""
    sums, counts = [], []
    for i, n_prompt in enumerate(split.prompt_lengths):
        ids, offsets = split.tokens.take(np.array([i]))
        batch = Batch(offsets, ids, split.task_ids[[i]], prompt_lengths=np.array([n_prompt]))
        logits = model.base.logits(data_of(model(batch)))
        log_p = np.stack([log_softmax(row) for row in logits])
        places = np.arange(n_prompt, len(ids))
        sums.append(-log_p[places - 1, ids[places]].sum())
        counts.append(len(places))
    return np.array(sums), np.array(counts)


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("method", ["poly", "smear", "molora"])
def test_the_loss_is_that_of_the_targets_alone(tmp_path: Path, method: str, template: str) -> None:
    for loss_mean in ("token", "example"):
        model, objective, tasks = prepared(tmp_path, None, method, template=template, loss_mean=loss_mean)
        split = objective.encode(model, tasks, "test")
        some = np.array([3, 20, 0, 14])
        batch = objective.batch(model, split, some, 0, 0)
        loss = objective.loss(model, batch)
        sums, counts = expected_losses(model, objective, split)
        np.testing.assert_allclose(loss.per_example, (sums / counts)[some], rtol=1e-5)
        by_token = sums[some].sum() / counts[some].sum()
        mean = by_token if loss_mean == "token" else (sums / counts)[some].mean()
        assert float(loss.mean) == pytest.approx(mean, rel=1e-5)
        if loss.weights is not None:
            np.testing.assert_array_equal(loss.weights, counts[some])


def test_targets_end_texts(tmp_path: Path) -> None:
    model, objective, tasks = prepared(tmp_path)
    split = objective.encode(model, tasks, "train")
    for i, example in enumerate(split.examples):
        ids, _ = split.tokens.take(np.array([i]))
        n = split.prompt_lengths[i]
        assert model.base.tokenizer.decode(ids[:n]) == example.input + "\n"
        assert model.base.tokenizer.decode(ids[n:-1]) == example.output and ids[-1] == 2


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    long = [("zebra " * 40, "cat"), ("dog", "dog " * 40), ("dog", "dog"), ("cat", "cat")]
    data = {"animal": {"train": long, "valid": long[2:]}, "colour": {"train": long, "valid": long[2:]}}
    model, objective, tasks = prepared(tmp_path, data)
    split = objective.encode(model, tasks, "train")
    assert split.tokens.lengths.max() <= 160
    assert split.counts()["animal"].truncated == 2
    np.testing.assert_array_equal(split.tokens.truncated[:4], [True, True, False, False])
    assert (split.tokens.lengths - split.prompt_lengths)[1] == 80  # of a target, half of the context at most


def test_gradients_reach_all_that_is_trained(tmp_path: Path) -> None:
    model, objective, tasks = prepared(tmp_path, None, configure("smear", stop_router_gradient=False))
    rng = np.random.default_rng(0)
    for _, p in model.adapter_parameters():
        p.data += 0.1 * rng.normal(size=p.shape).astype(np.float32)
    split = objective.encode(model, tasks, "train")
    batch = objective.batch(model, split, np.arange(5), 0, 0)
    with Tape() as tape:
        loss = objective.loss(model, batch)
    tape.backward(loss.mean)
    directions = {name: rng.normal(size=p.shape) for name, p in model.adapter_parameters()}
    slope = sum(float((p.grad * directions[name]).sum()) for name, p in model.adapter_parameters())
    values = []
    for h in (1e-2, -1e-2):
        for name, p in model.adapter_parameters():
            p.data += (h * directions[name]).astype(np.float32)
        values.append(objective.loss(model, batch).per_example)
        for name, p in model.adapter_parameters():
            p.data -= (h * directions[name]).astype(np.float32)
    counts = loss.weights
    difference = float(((values[0] - values[1]) * counts).sum() / counts.sum() / 2e-2)
    assert slope == pytest.approx(difference, rel=2e-2, abs=1e-3)


# ---- training


def test_tasks_learn_to_write_their_own(tmp_path: Path) -> None:
    records = Records()
    same = [text for text, _ in labelled(24, ["it"], 1)]
    outputs = {"animal": "cat", "colour": "red"}
    data = {
        name: {"train": [(text, own) for text in same], "test": [(same[0], own)]}
        for name, own in outputs.items()
    }
    config = TrainingConfig(epochs=12, batch_size=16, learning_rate=3e-2)
    objective = Lm(max_new_tokens=5, evaluate_before=True)
    trainer = Trainer(
        make_model(tmp_path, "private"),
        data,
        objective,
        config,
        tmp_path / "run",
        callbacks=(records,),
        progress=None,
    )
    summary = trainer.train()
    before, after = summary["evaluation_before"]["mean"], summary["evaluation"]["mean"]
    assert before["exact_match"] == 0 and after["exact_match"] == after["rougeL"] == 1
    assert after["loss"] < 0.2 * before["loss"] and 1 <= after["perplexity"] < before["perplexity"]
    losses = [r["loss"] for r in records.records]
    assert losses[-1] < 0.2 * losses[0]


def test_a_run_is_used_again(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    summary = trainer.train()
    assert {"loss", "exact_match", "accuracy", "rouge1", "rougeL"} <= set(summary["evaluation"]["mean"])

    run = load_run(tmp_path / "run")
    assert isinstance(run.objective, Lm) and run.objective.options == LmOptions(max_new_tokens=4)
    assert run.recipe["lm"]["max_new_tokens"] == 4
    example = read_tasks(classes())["animal"].test[0]
    (ranked,) = run.predict([example.input], "animal")
    assert ranked.output in ("cat", "dog") and set(ranked.scores) == {"cat", "dog"}
    assert ranked.score == max(ranked.scores.values()) <= 1
    (other,) = run.predict([example.input], "animal", ["red", "blue", "green"])
    assert set(other.scores) == {"red", "blue", "green"}
    (text,) = run.objective.write(run.model, [example.input], "animal")[0:1]
    assert text[0].finish in ("eos", "length") and len(text[0].token_ids) <= 4
    again = trainer.objective.predict(trainer.model, [example.input], "animal")
    assert again == [ranked]


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    from training_base import press_ctrl_c

    from polymoe.training import TrainingInterrupted

    config = {"epochs": 2, "gradient_accumulation_steps": 2}
    whole = make_trainer(tmp_path, output="whole", **config)
    whole.train()
    stopped = make_trainer(tmp_path, output="parts", **config)
    press_ctrl_c(stopped, 4)
    with pytest.raises(TrainingInterrupted):
        stopped.train()
    resumed = make_trainer(tmp_path, output="parts", **config)
    resumed.train(resume=True)
    np.testing.assert_array_equal(resumed.parameters.data, whole.parameters.data)


def test_accumulated_batches_are_one_batch_by_tokens(tmp_path: Path) -> None:
    """The mean over the tokens of all batches of a window, as if they were one."""
    data = {
        name: {"train": [("x" * i, "cat" * i) for i in range(1, 9)], "valid": [("x", "y")]} for name in TASKS
    }

    def gradient(**config: Any) -> np.ndarray:
        settings = {"max_steps": 1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "eval_steps": 9}
        trainer = Trainer(
            make_model(tmp_path, noise="off"), data, Lm(max_new_tokens=1),
            TrainingConfig(**settings | config), tmp_path / str(len(list(tmp_path.iterdir()))), progress=None,
        )  # fmt: skip
        gradients = []
        update = trainer.optimizer.update
        trainer.optimizer.update = lambda n: gradients.append(trainer.parameters.grad / n) or update(n)
        trainer.train()
        return gradients[0]

    one = gradient(batch_size=16)
    several = gradient(batch_size=4, gradient_accumulation_steps=4)
    np.testing.assert_allclose(several, one, rtol=0, atol=1e-5 * np.abs(one).max())


def test_validation_is_the_loss_unless_another_metric_selects(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    valid = trainer.objective.validate(trainer.model, trainer.valid_split, "loss")
    assert set(valid["mean"]) == {"loss", "perplexity"}
    valid = trainer.objective.validate(trainer.model, trainer.valid_split, "exact_match")
    assert {"exact_match", "accuracy", "loss"} <= set(valid["mean"])
    assert valid["mean"]["perplexity"] == pytest.approx(
        np.mean([math.exp(t["loss"]) for t in valid["tasks"].values()])
    )


def test_training_evaluates_as_many_test_texts_as_it_is_told(tmp_path: Path) -> None:
    summaries = {}
    for n in (None, 3, 99):
        objective = Lm(max_new_tokens=4, evaluate_before=True, eval_examples=n)
        trainer = make_trainer(tmp_path, objective, f"run {n}")
        summaries[n] = trainer.train()
        drawn = [e.example_id for task in trainer.data.values() for e in task.test]
        assert drawn == sorted(drawn[: len(drawn) // 2]) + sorted(drawn[len(drawn) // 2 :])
    few, whole = summaries[3], summaries[None]
    for evaluation in (few["evaluation_before"], few["evaluation"]):
        assert [task["n"] for task in evaluation["tasks"].values()] == [3, 3]
    assert (few["eval_examples"], whole["eval_examples"]) == (3, None)
    assert summaries[99]["evaluation"] == whole["evaluation"]
    assert few["validation"] == whole["validation"]  # training and what selects are not touched
    assert load_run(tmp_path / "run 3").evaluate(classes()) == whole["evaluation"]


def test_free_text_is_written_and_has_no_accuracy(tmp_path: Path) -> None:
    rows = [(text, f"{i} {text}") for i, (text, _) in enumerate(labelled(20, ["cat"], 0))]
    data = {name: {"train": rows, "test": rows[:4]} for name in TASKS}
    model, objective, tasks = prepared(tmp_path, data, max_new_tokens=3)
    evaluation = objective.evaluate(model, objective.encode(model, tasks, "test"))
    assert "accuracy" not in evaluation["mean"] and evaluation["tasks"]["animal"]["n"] == 4
    (prediction,) = objective.predict(model, ["a cat"], "animal")
    assert prediction.scores == {} and 0 < prediction.score <= 1


def test_one_more_task_can_be_learnt(tmp_path: Path) -> None:
    model, objective, _ = prepared(tmp_path)
    model.add_task("third", "router")
    third = read_tasks({"third": labelled(12, ["up", "down"], 5)})["third"]
    objective.add_task(model, third)
    assert objective.labels["third"] == ("down", "up") and objective.task_names == (*TASKS, "third")
    (prediction,) = objective.predict(model, ["a house"], "third")
    assert prediction.output in ("up", "down")


# ---- likelihoods and metrics


@pytest.mark.parametrize("method", ["poly", "smear", "orchmoe", "molora"])
def test_likelihoods_are_those_of_the_whole_text(tmp_path: Path, method: str) -> None:
    model = make_model(tmp_path, method)
    prompts = [np.array([1, 40, 41]), np.array([1, 50]), np.array([1, 60, 61, 62, 63])]
    candidates = [[[70, 71, 2], [72]], [[73, 2]], []]
    found = likelihoods(model, prompts, candidates, TASKS[0])
    for prompt, own, means in zip(prompts, candidates, found, strict=True):
        assert len(means) == len(own)
        for candidate, mean in zip(own, means, strict=True):
            ids = np.concatenate([prompt, candidate])
            batch = Batch(np.array([0, len(ids)]), ids, np.array([0]), prompt_lengths=np.array([len(prompt)]))
            logits = model.base.logits(model(batch))
            log_p = [log_softmax(logits[len(prompt) + i - 1])[t] for i, t in enumerate(candidate)]
            assert mean == pytest.approx(np.mean(log_p), rel=1e-5)
    small = likelihoods(model, prompts, candidates, TASKS[0], batch_tokens=6)
    for a, b in zip(small, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_metrics_take_the_best_reference() -> None:
    assert best_match([["The  cat", "x"], ["dog"]], ["the cat", "a dog"]) == 0.5
    scores = rouge([["the cat sat", "nothing"], ["one two"]], ["the cat sat", "two one"])
    assert scores["rouge1"] == 1 and scores["rougeL"] == 0.75


def test_lm_loss_refuses_what_does_not_fit() -> None:
    x, w = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    for args, message in (
        ((x, w, [0]), r"labels: expected one for each row of x \(2, 3\), got shape \(1,\)"),
        ((x, w, [0, 4]), "labels: expected 0 to 3, got 4"),
        ((x, w, [0, -1]), "labels: expected 0 to 3, got -1"),
        ((x, w, [0, 1], np.ones(3, np.float32)), r"weights: expected shape \(2,\), got \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            F.lm_loss(*args)
    _, saved = F.lm_loss(x, w, [0, 1], gradient=False)
    with pytest.raises(ValueError, match="gradient: expected True in the forward, got False"):
        F.lm_loss_backward(saved, 1.0)


# ---- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"template": "poem"}, ValueError, "template: expected plain, instruction or chat, got 'poem'"),
        ({"loss_mean": "word"}, ValueError, "loss_mean: expected token or example, got 'word'"),
        ({"demonstrations": 1}, ValueError, "demonstrations: expected 0 .template plain. or more, got 1"),
        ({"demonstrations": "1"}, TypeError, "demonstrations: expected an integer, got '1'"),
        ({"eval_examples": 0}, ValueError, "eval_examples: expected an integer from 1 on, got 0"),
        ({"eval_examples": True}, TypeError, "eval_examples: expected an integer, got True"),
        ({"separator": 1}, TypeError, "separator: expected a string, got 1"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: expected an integer from 1 on, got 0"),
    ],
)
def test_options_are_checked(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        LmOptions(**options)


def test_templates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"template: expected tasks with a definition .*, got animal without"
    ):
        prepared(tmp_path, template="instruction")
    with pytest.raises(ValueError, match="demonstrations: expected at most the 0 that animal has, got 2"):
        prepared(tmp_path, template="chat", demonstrations=2)
    model = make_model(tmp_path)
    model.base.tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"template: expected a base with a chat template .'chat'., got one"):
        Lm(template="chat").prepare(model, read_tasks(classes()))


def test_bases_and_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from training_base import make_model as make_bert

    with pytest.raises(TypeError, match="base: expected a language model, got Bert"):
        Lm().prepare(make_bert(tmp_path / "bert"), read_tasks(classes()))
    model = make_model(tmp_path, target_modules=["lm_head"])
    with pytest.raises(ValueError, match="target_modules: expected no adapter of lm_head"):
        Lm().prepare(model, read_tasks(classes()))
    config = tiny_llama.tiny_config()
    bare = Llama.from_state(LlamaConfig.from_dict(config), tiny_llama.tiny_state(config))
    with pytest.raises(ValueError, match="base: expected one with a tokenizer, got one without"):
        Lm(template="chat").prepare(adapt(bare, "poly", TASKS, r=2), read_tasks(classes()))


def test_a_metric_that_the_tasks_lack_is_told(tmp_path: Path) -> None:
    rows = [(str(i), str(i)) for i in range(20)]
    trainer = Trainer(
        make_model(tmp_path), dict.fromkeys(TASKS, rows), Lm(max_new_tokens=1),
        TrainingConfig(max_steps=1, metric_for_best_model="accuracy"), tmp_path / "run", progress=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"metric_for_best_model: expected one of .* got 'accuracy'"):
        trainer.train()
