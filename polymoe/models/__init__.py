"""Frozen bases: one file per family, and how a name or a folder becomes one. Nothing here knows of adapters
or trainers.
"""

from polymoe.models.base import Base
from polymoe.models.bert import Bert
from polymoe.models.bert_config import BertConfig
from polymoe.models.generate import Generation, generate
from polymoe.models.llama import Llama
from polymoe.models.llama_config import LlamaConfig
from polymoe.models.loading import load_base
from polymoe.models.search import GenerationConfig
from polymoe.models.t5 import T5
from polymoe.models.t5_config import T5Config

__all__ = [
    "T5",
    "Base",
    "Bert",
    "BertConfig",
    "Generation",
    "GenerationConfig",
    "Llama",
    "LlamaConfig",
    "T5Config",
    "generate",
    "load_base",
]
