"""What people set of an adapter: the fields of a recipe's ``adapter`` and the flags of ``polymoe train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polymoe.adapters.config import Bias, Gate, Granularity, Init, Mixing, Noise, Pooling, SiteName, Specific


@dataclass(frozen=True)
class AdapterOptions:
    """The adapter; what is not set is as the method has it."""

    target_modules: str | tuple[str, ...] | None = None
    """Modules that get an adapter: names, a regular expression, or "all-linear"; by default all linear layers
    where the adapters are pairs of low rank, else what is usual for the base."""
    feedforward_modules: str | tuple[str, ...] | None = None
    """Those of them whose input a vector multiplies (ia3, mov); by default as is usual for the base."""
    exclude_modules: str | tuple[str, ...] | None = None
    """Modules that get none although they match."""
    layers_to_transform: tuple[int, ...] | None = None
    """Numbers of the layers to adapt; all by default."""
    r: int | None = None
    """Rank of each pair."""
    n_skills: int | None = None
    """Experts to choose from; those that all tasks share (c-poly)."""
    n_splits: int | None = None
    """Heads (mhr)."""
    lora_alpha: float | None = None
    """The low-rank term is multiplied by lora_alpha / r."""
    rank_pattern: dict[str, int] | None = None
    """Other ranks for some modules: a name or regular expression, then the rank."""
    alpha_pattern: dict[str, float] | None = None
    """Another lora_alpha for some modules."""
    n_skills_pattern: dict[str, int] | None = None
    """Other numbers of experts for some modules (mosld's layers have 8, 6, 4, 2 of them)."""
    lora_dropout: float | None = None
    """Dropout of what enters the low-rank term."""
    bias: Bias | None = None
    """Also train the biases of the adapted modules (lora), as PEFT does."""
    lora_bias: bool | None = None
    """Add a bias to the low-rank term (lora), as PEFT does."""
    temperature: float | None = None
    """Of the noise of the gates."""
    noise: Noise | None = None
    """How often the gates' noise is drawn in training."""
    gate: Gate | None = None
    """What makes gates of a task's logits."""
    gate_dropout: float | None = None
    """Probability that a gate is 0 in training."""
    average_correction: bool | None = None
    """Multiply gates by sqrt(n_splits / n_skills) instead of dividing by their sum."""
    router_granularity: Granularity | None = None
    """A router for each layer, or one that those of a block or of the model share."""
    init: Init | None = None
    """Whose initial values the skills get."""
    router: str | None = None
    """Another router than the method's: constant, uniform, one_hot, given, task_table, common_specific,
    task_types, content_softmax, latent_tasks, token_softmax, arrow, coefficients.
    """
    experts: str | None = None
    """Other experts than the method's: lora, shared_A, tensor, vector; at the site feed_forward:
    feed_forward (whole copies), feed_forward_lora, bottleneck.
    """
    site: SiteName | None = None
    """What is adapted: linear layers, or whole feed-forwards."""
    train_experts: bool | None = None
    """Without it, experts stay as they start (with init_from)."""
    mixing: Mixing | None = None
    """Mix the experts' factors, their outputs, the leaves of tensors, or the outputs by a gate (alter)."""
    task_skills: tuple[str, ...] | None = None
    """A word of 0 and 1 for each task: its skills, said by hand (router given)."""
    task_types: tuple[str, ...] | None = None
    """The type of each task, in their order (alter)."""
    boost: float | None = None
    """How much more of the experts that are a type's own at the start (alter)."""
    renormalize: bool | None = None
    """Divide the weights that top_k keeps by their sum (router task_types)."""
    n_shared: int | None = None
    """Experts that belong to all, beside those of the types (alter)."""
    n_specific: int | None = None
    """Pairs of each task's own (c-poly)."""
    specific: Specific | None = None
    """Which weights of the tasks' own pairs are learnt (c-poly)."""
    ibp_prior: float | None = None
    """Coefficient of the prior on the tables of logits."""
    n_latent_tasks: int | None = None
    """Tasks that the router makes up (orchmoe)."""
    pooling: Pooling | None = None
    """How the router makes one vector of an example's tokens (orchmoe)."""
    stop_router_gradient: bool | None = None
    """Nothing below the router learns from it (routers that read the tokens)."""
    top_k: int | None = None
    """Experts that a token uses (mola, mosld)."""
    balance_loss: float | None = None
    """Coefficient of the loss that keeps all experts in use (with top_k)."""
    lora_A_dropout: float | None = None
    """Dropout of the entries of a shared A (mosld)."""
    order: Literal[2, 4, 8] | None = None
    """Leaves of a row (tlora, tensorpoly-i, tensorpoly-ii)."""
    zero_start: bool | None = None
    """Start exactly as the base (methods of tensors)."""
