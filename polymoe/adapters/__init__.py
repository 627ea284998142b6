"""Adapters: router x experts x mixing at a site, by method; alone or in a whole base.

Reading order: methods.py (the table), config.py, parts.py (what routers and experts are), by_task.py,
by_content.py, by_token.py, by_prototype.py and by_search.py (routers), low_rank.py, tensor_experts.py and
vector_experts.py (experts), layers.py, inject.py and targets.py, model.py; options.py for what people set,
extend.py for one more task, standalone.py for a layer in somebody's own loop, catalog.py for the table as
data.
"""

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.inject import Adapter
from polymoe.adapters.methods import METHODS, configure
from polymoe.adapters.model import AdaptedModel, adapt
from polymoe.adapters.standalone import AdaptedLinear, adapt_linear

__all__ = [
    "METHODS",
    "AdaptedLinear",
    "AdaptedModel",
    "Adapter",
    "AdapterConfig",
    "adapt",
    "adapt_linear",
    "configure",
]
