"""What a router learnt: arrays, to look at, plot or compare.

    statistics = polymoe.report.routing_statistics(run.model)
    statistics.weights                  # [T, L, Q, S]
    statistics.nearest("sentiment")     # [("emotion", 0.98), ...]

    found = polymoe.report.inspect(run) # all of it; a notebook shows it
    polymoe.report.write_page("report.html", [found])

Reading order: routing.py (a model's routing by task), texts.py (one text, token by token), inspection.py (all
there is to see of an adapter), html.py and the sections (the page), plots.py (figures); the measures are in
:mod:`polymoe.adapters.measures`, what they are taken of in :mod:`polymoe.adapters.statistics`.
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
from polymoe.report import plots
from polymoe.report.gradients import GradientSimilarity, gradient_similarity
from polymoe.report.html import page, write_page
from polymoe.report.inspection import Complaint, Inspection, inspect
from polymoe.report.routing import RoutingStatistics, routing_statistics
from polymoe.report.texts import RouterText, TextRouting, text_routing

__all__ = [
    "Complaint",
    "GradientSimilarity",
    "Inspection",
    "RouterStatistics",
    "RouterText",
    "RoutingStatistics",
    "TextRouting",
    "discreteness",
    "effective_skills",
    "entropy",
    "gradient_similarity",
    "inspect",
    "load_balance",
    "nearest",
    "page",
    "plots",
    "routing_statistics",
    "shares",
    "similarity",
    "text_routing",
    "usage",
    "variation",
    "write_page",
]
