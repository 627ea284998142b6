"""The routers by name. What a router is: :class:`polymoe.adapters.parts.Router`."""

from polymoe.adapters.by_content import ContentSoftmax, LatentTasks
from polymoe.adapters.by_prototype import Arrow
from polymoe.adapters.by_search import Coefficients
from polymoe.adapters.by_task import CommonSpecific, Constant, Given, OneHot, TaskTable, Uniform
from polymoe.adapters.by_token import TokenSoftmax
from polymoe.adapters.by_type import TaskTypes
from polymoe.adapters.parts import Router

ROUTERS: dict[str, type[Router]] = {
    "constant": Constant,
    "uniform": Uniform,
    "one_hot": OneHot,
    "given": Given,
    "task_table": TaskTable,
    "common_specific": CommonSpecific,
    "task_types": TaskTypes,
    "content_softmax": ContentSoftmax,
    "latent_tasks": LatentTasks,
    "token_softmax": TokenSoftmax,
    "arrow": Arrow,
    "coefficients": Coefficients,
}
