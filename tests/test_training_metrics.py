"""Metrics against scikit-learn's and SciPy's definitions, schedules against Hugging Face's, settings that
are refused.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from polymoe.training import TrainingConfig, metrics
from polymoe.training.schedules import constant, constant_with_warmup, cosine, linear

EXPECTED = ["a", "a", "b", "b", "c", "a"]
PREDICTED = ["a", "b", "b", "b", "d", "a"]


def test_accuracy_and_macro_f1_have_sklearns_values() -> None:
    # accuracy_score = 4/6; f1_score(average="macro") = mean of 0.8, 0.8, 0 (c), 0 (d)
    assert metrics.accuracy(EXPECTED, PREDICTED) == pytest.approx(4 / 6)
    assert metrics.macro_f1(EXPECTED, PREDICTED) == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_sklearn_on_random_labels(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(seed)
    y, p = (rng.choice(list("abcdef")[: seed + 2], size=40).tolist() for _ in range(2))
    assert metrics.accuracy(y, p) == pytest.approx(sklearn.accuracy_score(y, p))
    assert metrics.macro_f1(y, p) == pytest.approx(sklearn.f1_score(y, p, average="macro", zero_division=0))


def test_exact_match_ignores_case_and_space_and_nothing_else() -> None:
    assert metrics.exact_match(["Yes  it is", "no"], ["yes it IS ", "no."]) == 0.5


def test_correlations_have_scipys_values() -> None:
    x, y = [1.0, 2.0, 2.0, 4.0, 5.0], [3.0, 1.0, 4.0, 4.0, 9.0]
    assert metrics.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    # ranks 1 2.5 2.5 4 5 and 2 1 3.5 3.5 5: scipy.stats.spearmanr gives the correlation of these
    assert metrics.ranks(x).tolist() == [1, 2.5, 2.5, 4, 5]
    assert metrics.ranks(y).tolist() == [2, 1, 3.5, 3.5, 5]
    assert metrics.spearman(x, y) == pytest.approx(
        np.corrcoef([1, 2.5, 2.5, 4, 5], [2, 1, 3.5, 3.5, 5])[0, 1]
    )


def test_correlation_with_a_constant_is_zero() -> None:
    assert metrics.pearson([1.0, 2.0], [3.0, 3.0]) == 0.0
    assert metrics.spearman([1.0, 1.0], [3.0, 4.0]) == 0.0


def test_metrics_refuse_unequal_or_no_examples() -> None:
    with pytest.raises(ValueError, match="expected 2 values, got 1"):
        metrics.accuracy(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one example"):
        metrics.macro_f1([], [])


def test_summary_is_the_plain_mean_over_tasks() -> None:
    evaluation = metrics.summarize({"big": {"accuracy": 0.5, "n": 100}, "small": {"accuracy": 1.0, "n": 2}})
    assert evaluation["mean"] == {"accuracy": 0.75}
    assert evaluation["tasks"]["big"] == {"accuracy": 0.5, "n": 100}


def test_schedules_have_hugging_faces_values() -> None:
    # transformers.get_{linear,cosine,constant}_schedule_with_warmup(warmup 2, total 10) at steps 0 1 2 6 9
    steps = (0, 1, 2, 6, 9)
    assert [linear(s, 2, 10) for s in steps] == pytest.approx([0, 0.5, 1, 0.5, 0.125])
    assert [cosine(s, 2, 10) for s in steps] == pytest.approx(
        [0, 0.5, 1, 0.5, 0.5 * (1 + math.cos(math.pi * 7 / 8))]
    )
    assert [constant_with_warmup(s, 2, 10) for s in steps] == [0, 0.5, 1, 1, 1]
    assert [constant(s, 2, 10) for s in steps] == [1, 1, 1, 1, 1]
    assert linear(0, 0, 1) == cosine(0, 0, 1) == constant(0, 0, 1) == 1.0
    assert linear(12, 2, 10) == 0.0
    assert cosine(12, 2, 10) == pytest.approx(0.0)


def test_warmup_steps_go_before_the_ratio() -> None:
    assert TrainingConfig(warmup_ratio=0.1).warmup(95) == 10
    assert TrainingConfig(warmup_ratio=0.1, warmup_steps=3).warmup(95) == 3


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"epochs": -1}, ValueError, "epochs: expected an integer from 0 on, got -1"),
        ({"epochs": 1.5}, TypeError, "epochs: expected an integer, got 1.5"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate: expected a finite number"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate: expected a finite number"),
        ({"lr_scheduler_type": "square"}, ValueError, "lr_scheduler_type: expected one of"),
        ({"sampling": "most"}, ValueError, "sampling: expected one of"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"sampling_temperature": 0.0}, ValueError, "sampling_temperature: expected a number above 0"),
    ],
)
def test_config_refuses(setting: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrainingConfig(**setting)  # type: ignore[arg-type]


def test_config_round_trips_and_refuses_unknown_settings() -> None:
    config = TrainingConfig(epochs=7, eval_steps=5)
    assert TrainingConfig.from_dict(config.to_dict()) == config
    with pytest.raises(TypeError, match=r"expected settings out of .*got \['learning_rates'\]"):
        TrainingConfig.from_dict({"learning_rates": 1})
