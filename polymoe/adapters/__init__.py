"""Adapters: router x experts x mixing at a site, by method; alone or in a whole base.

Reading order: methods.py (the table), config.py, routers.py, experts.py, layers.py, inject.py and
targets.py, model.py; standalone.py for a layer in somebody's own loop.
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
