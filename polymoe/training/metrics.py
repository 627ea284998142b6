"""Metrics of one task, and the evaluation object that the whole project speaks in.

Accuracy and F1 follow scikit-learn's definitions, the correlations SciPy's, except that an undefined value
is 0 and not NaN, so that every evaluation can be written as JSON and compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TypedDict

import numpy as np


class Evaluation(TypedDict):
    """``{"tasks": {NAME: {METRIC: value, "n": examples}}, "mean": {METRIC: mean over tasks}}``."""

    tasks: dict[str, dict[str, float]]
    mean: dict[str, float]


def accuracy(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of examples whose prediction is the expected one."""
    _check(expected, predicted)
    return sum(e == p for e, p in zip(expected, predicted, strict=True)) / len(expected)


def exact_match(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of examples whose prediction is the expected one but for case and white space."""
    return accuracy([_fold(e) for e in expected], [_fold(p) for p in predicted])


def best_match(references: Sequence[Sequence[str]], predicted: Sequence[str]) -> float:
    """Share of examples whose prediction is one of its references but for case and white space."""
    _check(references, predicted)
    hits = [_fold(p) in map(_fold, own) for own, p in zip(references, predicted, strict=True)]
    return sum(hits) / len(hits)


def rouge(references: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """ROUGE-1 and ROUGE-L (F1 of stems, the best of an example's references, the mean over examples), as the
    package rouge-score computes them. ModuleNotFoundError without it. Lin 2004."""
    _check(references, predicted)
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rougeL"]
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [scorer.score_multi(list(own), p) for own, p in zip(references, predicted, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


def rouge_where_installed(references: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """:func:`rouge`, or nothing and a warning without the package."""
    if find_spec("rouge_score") is not None:
        return rouge(references, predicted)
    warnings.warn(
        "rouge1, rougeL: expected the package rouge-score, got none: left out (pip install 'polymoe[lm]')",
        stacklevel=2,
    )
    return {}


def macro_f1(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """Unweighted mean of F1 over the labels that are expected or predicted anywhere.

    >>> round(macro_f1(["yes", "yes", "no"], ["yes", "no", "no"]), 4)
    0.6667
    """
    _check(expected, predicted)
    hits: dict[str, int] = {}
    seen: dict[str, int] = {}  # times expected + times predicted = 2 tp + fp + fn
    for e, p in zip(expected, predicted, strict=True):
        seen[e] = seen.get(e, 0) + 1
        seen[p] = seen.get(p, 0) + 1
        hits[e] = hits.get(e, 0) + (e == p)
    return sum(2 * hits.get(label, 0) / n for label, n in seen.items()) / len(seen)


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Linear correlation; 0 where one side is constant."""
    _check(x, y)
    a, b = (v - v.mean() for v in (np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float(np.clip((a * b).sum() / scale, -1.0, 1.0)) if scale > 0 else 0.0


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation of ranks, equal values sharing the mean of theirs; 0 where one side is constant."""
    _check(x, y)
    return pearson(ranks(x).tolist(), ranks(y).tolist())


def ranks(x: Sequence[float]) -> np.ndarray:
    """Ranks from 1 [n] float64; equal values get the mean of theirs.

    >>> ranks([30.0, 10.0, 30.0])
    array([2.5, 1. , 2.5])
    """
    _, which, count = np.unique(np.asarray(x, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[which], dtype=np.float64)


def mean_squared_error(x: Sequence[float], y: Sequence[float]) -> float:
    """Mean of the squared differences."""
    _check(x, y)
    return float(np.mean((np.asarray(x, dtype=np.float64) - np.asarray(y, dtype=np.float64)) ** 2))


def classification(expected: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """accuracy, macro_f1, exact_match and n of one task."""
    return {
        "accuracy": accuracy(expected, predicted),
        "macro_f1": macro_f1(expected, predicted),
        "exact_match": exact_match(expected, predicted),
        "n": len(expected),
    }


def regression(expected: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """pearson, spearman, mse and n of one task."""
    return {
        "pearson": pearson(expected, predicted),
        "spearman": spearman(expected, predicted),
        "mse": mean_squared_error(expected, predicted),
        "n": len(expected),
    }


def summarize(tasks: Mapping[str, Mapping[str, float]]) -> Evaluation:
    """The evaluation of all tasks, with the plain mean over tasks of every metric."""
    names = {metric: None for values in tasks.values() for metric in values if metric != "n"}
    mean = {}
    for metric in names:
        values = [float(task[metric]) for task in tasks.values() if metric in task]
        mean[metric] = sum(values) / len(values)
    return {"tasks": {name: dict(values) for name, values in tasks.items()}, "mean": mean}


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _check(expected: Sequence[object], predicted: Sequence[object]) -> None:
    if len(expected) != len(predicted):
        raise ValueError(f"predicted: expected {len(expected)} values, got {len(predicted)}")
    if not len(expected):
        raise ValueError("expected: expected at least one example, got none")
