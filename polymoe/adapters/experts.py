"""The experts by name. What experts are: :class:`polymoe.adapters.parts.Experts`."""

from polymoe.adapters.feed_forward_experts import (
    BottleneckExperts,
    CopyExperts,
    LoraFeedForwardExperts,
)
from polymoe.adapters.low_rank import LoraExperts, SharedLoraExperts
from polymoe.adapters.parts import Experts
from polymoe.adapters.tensor_experts import TensorExperts
from polymoe.adapters.vector_experts import VectorExperts

EXPERTS: dict[str, type[Experts]] = {
    "lora": LoraExperts,
    "shared_A": SharedLoraExperts,
    "tensor": TensorExperts,
    "feed_forward": CopyExperts,
    "feed_forward_lora": LoraFeedForwardExperts,
    "bottleneck": BottleneckExperts,
    "vector": VectorExperts,
}
