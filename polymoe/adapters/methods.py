"""The methods: each is a row that says which parts it is made of, and nothing else.

| method  | router                                  | experts | mixing  | site   | scale   | needs    |
|---------|-----------------------------------------|---------|---------|--------|---------|----------|
| lora    | constant                                | 1 pair  | factors | linear | alpha/r | nothing  |
| private | one-hot by task                         | T pairs | factors | linear | alpha/r | task ids |
| poly    | task table, Gumbel-sigmoid, normalised  | S pairs | factors | linear | 1/r     | task ids |
| mhr     | the same, a row for each of Q heads     | S pairs | factors | linear | 1/r     | task ids |
| mhr-z   | as mhr, learnt after it                 | mhr's   | factors | linear | 1/r     | task ids |
| mhr-mu  | uniform                                 | S pairs | factors | linear | 1/r     | nothing  |
| c-poly  | task table beside a row of V            | S + T n | outputs | linear | 1/r     | task ids |
| smear   | softmax of the example's mean token      | S pairs | factors | linear | 1/r     | nothing  |
| orchmoe | example -> latent tasks x allocation    | S pairs | outputs | linear | 1/r     | nothing  |
| molora  | softmax of each token                   | S pairs | outputs | linear | alpha/r | nothing  |
| mola    | the same, its best 2                    | S pairs | outputs | linear | alpha/r | nothing  |
| hydralora | softmax of each token                 | one A   | outputs | linear | alpha/r | nothing  |
| mosld   | the same, its best 2                    | one A   | outputs | linear | alpha/r | nothing  |
| arrow   | tokens along prototypes, the best 3     | private's, frozen | outputs | linear | alpha/r | none |
| lorahub | numbers by task, searched               | private's | factors | linear | alpha/r | task ids |
| ia3     | constant                                | 1 vector | factors | linear | 1      | nothing  |
| mov     | softmax of each token                   | S vectors | outputs | linear | 1     | nothing  |
| alter-stage-1 | a row for each type of task      | copies  | outputs | feed-forward |  | task types |
| alter | its best 2; learnt after stage 1        | copies  | gated   | feed-forward |  | task types |
| tlora   | constant                                | tensors | factors | linear | 1/r     | nothing  |
| tensorpoly-i | task table                         | tensors | factors | linear | 1/r     | task ids |
| tensorpoly-ii | task table, a row for each order  | tensors | leaves  | linear | 1/r     | task ids |

    factors: y = x W^T + b + scale (x A^T) B,   A = sum_s w_s A_s,   B = sum_s w_s B_s   (by block for heads)
    outputs: y = x W^T + b + scale sum_s w_s (x A_s^T) B_s         or sum_s w_s E_s(x) of whole experts
    gated:   the same, beside shared experts, weighed by a gate that reads the outputs
    vectors: y = (x W^T + b) * sum_s w_s v_s, however they are mixed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from polymoe.adapters.config import AdapterConfig


@dataclass(frozen=True)
class Method:
    """A row: what differs from the defaults of :class:`AdapterConfig`, and where the method comes from.

    ``after``: the row whose trained adapter it starts from; ``rates``: learning rates of groups of parameters
    ("skills", "content"), where the usual ones do not suit them.
    """

    title: str
    source: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    after: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)


# The scale 16/8 is published for MoSLD; the relatives share it.
_TOKEN = {"router": "token_softmax", "mixing": "outputs", "lora_alpha": 16}
# Sizes of the authors' best configurations, which take no noise.
_TENSOR_POLY = {
    "router": "task_table", "experts": "tensor", "init": "mttl", "order": 4, "n_skills": 8, "r": 16,
    "noise": "off",
}  # fmt: skip

_ALTER = {
    "router": "task_types", "experts": "feed_forward", "site": "feed_forward", "n_skills": 5,
    "temperature": 0.1, "gate": "softmax", "noise": "off",
}  # fmt: skip

METHODS: dict[str, Method] = {
    # alpha 8 with rank 8, PEFT's defaults: the term is added as it is.
    "lora": Method(
        "LoRA: one pair that all tasks share",
        "Hu et al. 2021, arXiv 2106.09685",
        {"router": "constant", "n_skills": 1, "lora_alpha": 8},
        aliases=("shared",),
    ),
    # The scale of lora and not of poly: a private adapter is what LoRA would train on that task alone, so
    # that one task gives the same bits as lora, and each can be exported as PEFT would have made it.
    "private": Method(
        "Private LoRA: each task its own pair",
        "Ponti et al. 2022, arXiv 2202.13914 (baseline)",
        {"router": "one_hot", "n_skills": 1, "lora_alpha": 8},
    ),
    "poly": Method(
        "Polytropon: tasks mix the pairs of a common inventory",
        "Ponti et al. 2022, arXiv 2202.13914",
        {"router": "task_table"},
    ),
    # Four heads: PEFT's own example takes 4, it divides the width of every common base (384, 768, 1024
    # ...), and the table of logits stays small beside the skills.
    "mhr": Method(
        "Multi-head routing: Poly with its own mixture for each block of inputs and outputs",
        "Caccia et al. 2022, arXiv 2211.03831",
        {"router": "task_table", "n_splits": 4},
    ),
    "mhr-z": Method(
        "MHR-z: only the mixtures are learnt, of pairs that MHR has trained",
        "Caccia et al. 2022, arXiv 2211.03831",
        {"router": "task_table", "n_splits": 4, "train_experts": False},
        after="mhr",
    ),
    # The mean of all stands for one pair; all S are kept, as the authors do, so that MHR's can be taken.
    "mhr-mu": Method(
        "MHR-mu: the mean of all pairs, for everybody",
        "Caccia et al. 2022, arXiv 2211.03831",
        {"router": "uniform"},
        aliases=("mu",),
    ),
    # Published: 3 common, 1 specific, rank 2, outputs. Choices: the scale 1/r (of the authors' code, as
    # is mixing="factors"), and V's rate, that of the skills.
    "c-poly": Method(
        "C-Poly: skills that all tasks share beside each task's own",
        "Wang et al. 2023, arXiv 2312.03248",
        {"router": "common_specific", "mixing": "outputs", "n_skills": 3, "r": 2},
        aliases=("cpoly",),
    ),
    "smear": Method(
        "SMEAR: each example averages the experts by a softmax of what it says",
        "Muqeeth et al. 2023, arXiv 2306.03745",
        {"router": "content_softmax", "n_skills": 8},
        # Published for all it trains; at 1e-3 the router soon sends everything to one pair.
        rates={"content": 3e-4},
    ),
    # Sizes as C-Poly's, whose authors these are; none are published.
    "orchmoe": Method(
        "OrchMoE: no task ids; each example is a mixture of latent tasks, each a mixture of skills",
        "Wang et al. 2024, arXiv 2401.10559",
        {"router": "latent_tasks", "mixing": "outputs", "r": 2, "noise": "per_step"},
    ),
    "molora": Method(
        "MoLoRA: each token sums all experts by a softmax",
        "Zadouri et al. 2023, arXiv 2309.05444",
        {**_TOKEN, "n_skills": 10, "r": 4},
        aliases=("moe-lora",),
    ),
    "mola": Method(
        "MoLA: each token sums its two best experts",
        "Gao et al. 2024, arXiv 2402.08562",
        {**_TOKEN, "n_skills": 5, "top_k": 2, "balance_loss": 1e-3},
    ),
    # Three up-projections: a choice, as is the rank.
    "hydralora": Method(
        "HydraLoRA: one A for all experts, each token sums their Bs by a softmax",
        "Tian et al. 2024, arXiv 2404.19245",
        {**_TOKEN, "experts": "shared_A", "n_skills": 3},
    ),
    # Published: 8, 6, 4, 2 experts from the lowest quarter of the layers to the highest (or, in a figure, the
    # reverse); n_skills_pattern says so for a base. 5 is their mean. The coefficient is MoLA's.
    "mosld": Method(
        "MoSLD: one A for all experts, with dropout; each token sums its two best Bs",
        "Zhao et al. 2024, arXiv 2412.08946",
        {
            **_TOKEN,
            "experts": "shared_A",
            "n_skills": 5,
            "top_k": 2,
            "balance_loss": 1e-3,
            "lora_A_dropout": 0.1,
        },
    ),
    # Three and the temperature 1 are PEFT's; of fewer experts, all are taken. Nothing is trained.
    "arrow": Method(
        "Arrow: private adapters, each token sums those whose strongest direction it lies along",
        "Ostapenko et al. 2024, arXiv 2405.11157",
        {"router": "arrow", "mixing": "outputs", "top_k": 3, "train_experts": False},
        after="private",
    ),
    "lorahub": Method(
        "LoRAHub: private adapters, added up with weights that a search finds for each task",
        "Huang et al. 2023, arXiv 2307.13269",
        {"router": "coefficients", "router_granularity": "model", "train_experts": False},
        after="private",
    ),
    # The rate is T-Few's, published for Adafactor; AdamW moves a vector as far by it.
    "ia3": Method(
        "(IA)3: one vector multiplies keys, values and the hidden layer of the feed-forward",
        "Liu et al. 2022, arXiv 2205.05638",
        {"router": "constant", "experts": "vector", "n_skills": 1},
        rates={"skills": 3e-3},
    ),
    # Published: ten vectors, and 3e-4 for all that is trained. The vectors have the rate of ia3, for a
    # mixture moves as far as each of them.
    "mov": Method(
        "MoV: each token mixes the vectors of (IA)3 by a softmax",
        "Zadouri et al. 2023, arXiv 2309.05444",
        {"router": "token_softmax", "experts": "vector", "mixing": "outputs", "n_skills": 10},
        rates={"skills": 3e-3},
    ),
    # Sizes, temperature and boost as published; the rate is the default of the authors' script (which runs
    # with 3e-5, for all of T5).
    "alter-stage-1": Method(
        "ALTER, first stage: copies of a feed-forward, mixed by the type of the task",
        "Xie et al. 2023, arXiv 2309.11042",
        {**_ALTER, "mixing": "outputs"},
        rates={"skills": 1e-4},
    ),
    # Two of the type's experts and three shared ones: the largest variant of the authors' code.
    "alter": Method(
        "ALTER: then shared copies beside them, and a gate that reads the first token",
        "Xie et al. 2023, arXiv 2309.11042",
        {**_ALTER, "mixing": "gated", "top_k": 2, "n_shared": 3},
        aliases=("mta",),
        after="alter-stage-1",
        rates={"skills": 1e-4},
    ),
    "tlora": Method(
        "TLoRA: one pair whose rows are Kronecker products of small leaves",
        "Su et al. 2024, arXiv 2405.16671 (baseline)",
        {"router": "constant", "experts": "tensor", "n_skills": 1, "init": "tlora", "r": 4},
    ),
    "tensorpoly-i": Method(
        "TensorPoly-I: tasks mix components, each a pair of Kronecker products",
        "Su et al. 2024, arXiv 2405.16671",
        {**_TENSOR_POLY},
    ),
    "tensorpoly-ii": Method(
        "TensorPoly-II: tasks mix the leaves of each order, then multiply them",
        "Su et al. 2024, arXiv 2405.16671",
        {**_TENSOR_POLY, "mixing": "leaves"},
    ),
}

_NAMES = {alias: name for name, row in METHODS.items() for alias in (name, *row.aliases)}


def find_method(method: str) -> Method:
    """The row of a name or alias; ValueError for an unknown one (near names are suggested)."""
    return METHODS[_resolve(method)]


def _resolve(method: str) -> str:
    name = _NAMES.get(str(method).lower())
    if name is None:
        near = get_close_matches(str(method).lower(), _NAMES, n=3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}{hint}")
    return name


def configure(method: str | AdapterConfig, **overrides: Any) -> AdapterConfig:
    """The configuration of a method (or a given one), with some fields set otherwise.

    >>> configure("shared", r=4)
    AdapterConfig(method='lora', router='constant', ... r=4, ...)

    ValueError for an unknown method (near names are suggested) and for parts that do not fit; TypeError for
    an unknown field.
    """
    known = [f.name for f in fields(AdapterConfig) if f.name != "method"]
    for key in overrides:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise TypeError(f"{key}: expected a field of AdapterConfig, got an unknown one{hint}")
    if isinstance(method, AdapterConfig):
        return replace(method, **overrides)
    name = _resolve(method)
    return AdapterConfig(**{"method": name, **METHODS[name].preset, **overrides})


def learning_rates(config: AdapterConfig) -> dict[str, float]:
    """The learning rates that suit an adapter's "skills" (its experts) and "content" (routers that read the
    tokens): the row's own; or 5e-4 / scale, for rate times scale is what a step of Adam moves the output by;
    and 1e-3. A row's rate for its experts is not that of others."""
    row = METHODS.get(config.method)
    own = {} if row is None else dict(row.rates)
    if row is not None and config.experts != row.preset.get("experts", AdapterConfig.experts):
        own.pop("skills", None)
    return {"skills": 5e-4 / config.scale(""), "content": 1e-3, **own}
