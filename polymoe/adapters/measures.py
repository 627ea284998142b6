"""Measures of routing: functions of arrays of weights, whose last axis is the skills.

Weights need not sum to 1 and may be negative (C-Poly's own rows, the gate "l2"), so everything here goes by
:func:`shares`.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def shares(weights: Any) -> np.ndarray:
    """How much of a row falls to each skill: ``p_s = |w_s| / sum_s |w_s|``, [..., S] float64; a row of zeros
    stays one."""
    size = np.abs(np.asarray(weights, np.float64))
    total = size.sum(axis=-1, keepdims=True)
    p: np.ndarray = np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    return p


def entropy(weights: Any) -> np.ndarray:
    """``-sum_s p_s log p_s / log S`` of the :func:`shares` p, [...]: 0 for one skill alone, 1 for all alike.
    A single skill (S = 1) leaves no choice: 0.

    >>> entropy([[1, 1, 0, 0], [0, 2, 0, 0]])
    array([0.5, 0. ])
    """
    p = shares(weights)
    n_skills = p.shape[-1]
    if n_skills == 1:
        return np.zeros(p.shape[:-1])
    information: np.ndarray = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1) / np.log(n_skills)
    return np.asarray(np.maximum(information, 0))


def effective_skills(weights: Any) -> np.ndarray:
    """``exp(-sum_s p_s log p_s)`` [...]: how many skills, used alike, would be as undecided (perplexity);
    0 for a row of zeros.

    >>> effective_skills([[1, 1, 0, 0], [0, 2, 0, 0]])
    array([2., 1.])
    """
    n_skills = np.shape(weights)[-1]
    used = shares(weights).any(axis=-1)
    return np.where(used, n_skills ** entropy(weights), 0.0)


def discreteness(gates: Any) -> np.ndarray:
    """``-(g log g + (1 - g) log(1 - g)) / log 2``, mean over the skills, of gates g in [0, 1]; [...].

    0 is the discrete end: every gate is 0 or 1. 1 is the undecided end: every gate is one half, as a table
    of logits starts. Ponti et al. 2022, arXiv 2202.13914, which has the name. Gates are those before they
    are normalised: weights do not determine them.

    >>> discreteness([[1, 0, 1], [0.5, 0.5, 0.5]])
    array([0., 1.])
    """
    g = np.asarray(gates, np.float64)
    both = np.stack([g, 1 - g], axis=-1)
    return np.asarray(-(both * np.log2(np.where(both > 0, both, 1))).sum(axis=-1).mean(axis=-1)) + 0.0


def usage(weights: Any) -> np.ndarray:
    """Entropy of the column sums of weights [T, ..., S], divided by log S; [...]: 1 when the tasks together
    use all skills alike, 0 when they all use one and the same of several. Ponti et al. 2022 (there of the
    gates).

    >>> float(usage([[1, 0], [0, 1]])), float(usage([[1, 0], [1, 0]]))
    (1.0, 0.0)
    """
    sums = np.abs(np.asarray(weights, np.float64)).sum(axis=0)
    return np.ones(sums.shape[:-1]) if sums.shape[-1] == 1 else entropy(sums)


def load_balance(chosen: Any, weights: Any) -> np.ndarray:
    """``S sum_s f_s P_s`` [...]: f [..., S] the share of the choices that went to a skill, P its mean weight.

    1 when both are even, S when one skill takes all. Fedus et al. 2021 (Switch, arXiv 2101.03961).
    """
    return np.asarray(np.shape(weights)[-1] * (shares(chosen) * shares(weights)).sum(axis=-1))


def variation(loads: Any) -> np.ndarray:
    """Coefficient of variation of loads [..., S], standard deviation over mean; [...]: 0 when even,
    ``sqrt(S - 1)`` when one skill takes all. Shazeer et al. 2017, arXiv 1701.06538.

    >>> round(float(variation([1, 0, 0, 0, 0])), 6)
    2.0
    """
    p = shares(loads)
    return np.asarray(p.std(axis=-1) * p.shape[-1])


def similarity(weights: Any) -> np.ndarray:
    """How alike two tasks are routed: the cosine of their rows of weights [T, ..., S], averaged over all
    between (layers, heads); [T, T]. 0 for a row of zeros.

    >>> similarity([[[1, 0], [1, 0]], [[1, 0], [0, 1]]])
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    w = np.asarray(weights, np.float64)
    w = w.reshape(len(w), -1, w.shape[-1])
    length = np.linalg.norm(w, axis=-1, keepdims=True)
    unit = np.divide(w, length, out=np.zeros_like(w), where=length > 0)
    return np.asarray(np.einsum("ihs,jhs->ij", unit, unit) / w.shape[1])


def nearest(similar: np.ndarray, task: int) -> np.ndarray:
    """The other tasks by falling similarity to one of [T, T]; equal ones in their order; [T - 1] int64."""
    order = np.argsort(-similar[task], kind="stable")
    return np.asarray(order[order != task])
