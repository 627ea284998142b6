"""Weights that no gradient finds: for each task the best that a few evaluations of its loss meet. LoRAHub.

    minimise  mean loss of up to ``search_examples`` training examples + 0.05 mean |w|,    w in [-1.5, 1.5]^n

in ``search_steps`` evaluations from where w stands. Penalty, bounds and 40 evaluations are published: Huang
et al. 2023, arXiv 2307.13269, who take nevergrad's NGOpt. Here it is SciPy's COBYQA, another optimiser, which
goes by quadratic models within bounds: it draws nothing at random, and people have SciPy. It looks at 2 n + 1
points before its first model: with many experts, give it more steps. The number of examples and the first
step are our choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from polymoe import random
from polymoe.adapters import Adapter
from polymoe.data import EncodedSplit, cut_batches
from polymoe.parameters import Parameter
from polymoe.training.config import TrainingConfig
from polymoe.training.objectives.base import Objective
from polymoe.training.objectives.embedding import BATCH_TOKENS

BOUND = 1.5
PENALTY = 0.05
FIRST_STEP = 0.5

Told = Callable[[Mapping[str, Any]], bool]


class _Stopped(Exception):
    pass


def searched_tables(adapter: Adapter) -> list[Parameter]:
    """The parameters of its routers, a row for each task, that a search finds."""
    routers = {id(layer.router): layer.router for layer in adapter.layers.values()}.values()
    return [getattr(router, router.searched) for router in routers if router.searched is not None]


def load_minimize() -> Callable[..., Any]:
    """``scipy.optimize.minimize``; ImportError that says how to get it."""
    try:
        minimize: Callable[..., Any] = import_module("scipy.optimize").minimize
    except ImportError as error:
        raise ImportError(
            f"search: expected SciPy 1.14 or later (pip install 'polymoe[search]'), got none ({error})"
        ) from error
    return minimize


def search(
    model: Any,
    objective: Objective,
    split: EncodedSplit,
    config: TrainingConfig,
    told: Told = lambda record: False,
) -> bool:
    """Find the rows of the tasks in ``split`` in the active adapter's :func:`searched_tables`.

    ``told`` hears of each evaluation, its task, number, value, and the best value so far, and says whether to
    stop. Returns whether the search came to its end; rows are as they were where it did not. ImportError
    without SciPy.
    """
    minimize, tables = load_minimize(), searched_tables(model.adapter)
    before, done = [table.data.copy() for table in tables], False
    try:
        with model.without_noise():
            for task in split.sizes:
                _search_task(minimize, model, objective, split, config, told, tables, task)
        done = True
    except _Stopped:
        pass
    finally:
        if not done:
            for table, values in zip(tables, before, strict=True):
                table.data[...] = values
    return done


def _search_task(
    minimize: Callable[..., Any],
    model: Any,
    objective: Objective,
    split: EncodedSplit,
    config: TrainingConfig,
    told: Told,
    tables: list[Parameter],
    task: str,
) -> None:
    rows = [table.data[model.tasks.id(task)] for table in tables]  # views
    ends = np.cumsum([row.size for row in rows])
    examples = choose(split, task, config.search_examples, config.seed)
    batches = [
        objective.batch(model, split, indices, config.seed, 0)
        for indices in cut_batches(examples, split.tokens.lengths, max_tokens=BATCH_TOKENS)
    ]
    best_value, best, n = np.inf, np.concatenate([row.ravel() for row in rows]).astype(np.float64), 0

    def put(w: np.ndarray) -> None:
        for row, part in zip(rows, np.split(w, ends[:-1]), strict=True):
            row[...] = part.reshape(row.shape)

    def value(w: np.ndarray) -> float:
        nonlocal best_value, best, n
        put(w)
        total = sum(float(objective.loss(model, b).per_example.sum(dtype=np.float64)) for b in batches)
        found = total / len(examples) + PENALTY * float(np.abs(w).mean())
        n += 1
        if found < best_value:
            best_value, best = found, w.copy()
        if told({"task": task, "evaluation": n, "value": found, "best": best_value}):
            raise _Stopped
        return found

    options = {"maxfev": config.search_steps, "initial_tr_radius": FIRST_STEP}
    minimize(value, best.copy(), method="COBYQA", bounds=[(-BOUND, BOUND)] * len(best), options=options)
    put(best)


def choose(split: EncodedSplit, task: str, n: int, seed: int) -> np.ndarray:
    """Up to ``n`` examples of a task, as indices into the split: which ones, the seed says, whatever their
    order."""
    own = np.array([i for i, example in enumerate(split.examples) if example.task == task], dtype=np.int64)
    u = random.uniform(seed, "search", 0, task, split.example_ids[own], 1)[:, 0]
    return np.sort(own[np.argsort(u, kind="stable")[:n]])
