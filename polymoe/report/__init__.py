"""What a router learnt: arrays, to look at, plot or compare.

    statistics = polymoe.report.routing_statistics(run.model)
    statistics.weights                  # [T, L, Q, S]
    statistics.nearest("sentiment")     # [("emotion", 0.98), ...]

Reading order: routing.py (a model's routing by task), texts.py (one text, token by token); the measures are
in :mod:`polymoe.adapters.measures`, what they are taken of in :mod:`polymoe.adapters.statistics`.
"""

from polymoe.adapters.measures import (
    discreteness,
    effective_skills,
    entropy,
    load_balance,
    nearest,
    shares,
    similarity,
    usage,
    variation,
)
from polymoe.adapters.statistics import RouterStatistics
from polymoe.report.routing import RoutingStatistics, routing_statistics
from polymoe.report.texts import RouterText, TextRouting, text_routing

__all__ = [
    "RouterStatistics",
    "RouterText",
    "RoutingStatistics",
    "TextRouting",
    "discreteness",
    "effective_skills",
    "entropy",
    "load_balance",
    "nearest",
    "routing_statistics",
    "shares",
    "similarity",
    "text_routing",
    "usage",
    "variation",
]
