"""Blocks that are run again in backward give the same bits, in every family and with every router."""

import numpy as np
import pytest
from tiny_bert import write_bert
from tiny_llama import write_llama
from tiny_t5 import write_t5
from training_base import classes

from polymoe import tape
from polymoe.adapters import adapt
from polymoe.batch import Batch, Source
from polymoe.models import load_base
from polymoe.nn import Linear
from polymoe.recipe import Recipe
from polymoe.training import Trainer, TrainingConfig
from polymoe.training.objectives import Lm

TASKS = ("a", "b", "c")
OFFSETS, TOKENS = np.array([0, 3, 4, 9]), np.arange(9) % 7 + 5
FAMILIES = {"bert": write_bert, "llama": write_llama, "t5": write_t5}


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    return load_base(FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "tiny"))


def make(base, method, **options):
    if method == "alter":  # the feed-forwards of all blocks: in a T5, of encoder and decoder
        where = r".*(feed_forward|mlp|DenseReluDense)"
        options = {"target_modules": where, "task_types": ("x", "y", "x")} | options
    else:
        options = {"target_modules": "all-linear", "r": 2} | options
    model = adapt(base, method, TASKS, init_weights=False, **options)
    return model.train()


def gradients(model, **fields):
    """Hidden states, auxiliary losses and the gradient of every parameter, as bytes; and how many operations
    were recorded."""
    source = Source(TOKENS[::-1].copy(), np.array([0, 2, 6, 9])) if hasattr(model.base, "decoder") else None
    batch = Batch(OFFSETS, TOKENS, np.array([2, 0, 1]), seed=1, step=3, source=source, **fields)
    for _, parameter in model.adapter_parameters():
        parameter.grad = None
    with tape.Tape() as recorded:
        y = model(batch)
    n = len(recorded.records)
    auxiliary = [float(tape.data_of(loss)) for loss in recorded.losses]
    recorded.backward(y, np.random.default_rng(0).normal(size=y.shape).astype(np.float32), 0.3)
    grads = {name: p.grad.tobytes() for name, p in model.adapter_parameters() if p.grad is not None}
    return y.data.tobytes(), auxiliary, grads, n


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("poly", {}),
        ("mhr", {"router_granularity": "block", "noise": "per_example", "ibp_prior": 1.0}),
        ("poly", {"router_granularity": "model", "ibp_prior": 1.0}),
        ("orchmoe", {}),
        ("orchmoe", {"router_granularity": "model"}),
        ("smear", {"router_granularity": "block", "lora_dropout": 0.2}),
        ("molora", {}),
        ("mosld", {"balance_loss": 0.1}),
        ("alter", {}),
    ],
)
def test_gradients_are_the_same_to_the_last_bit(base, method, options):
    model = make(base, method, **options)
    *plain, n = gradients(model)
    *again, fewer = gradients(model, gradient_checkpointing=True)
    assert plain == again
    assert len(plain[2]) == len([p for _, p in model.adapter_parameters() if p.trainable])
    assert fewer < n / 4


def test_what_lies_below_the_adapters_is_not_run_again(base):
    last = [name for name, m in base.named_modules() if isinstance(m, Linear) and name != "lm_head"][-1]
    model = make(base, "poly", target_modules=[last])
    *plain, _ = gradients(model)
    *again, n = gradients(model, gradient_checkpointing=True)
    assert plain == again
    assert n <= 4  # the last block, and what comes behind it


def test_a_run_is_the_same_and_goes_on_with_the_other_setting(tmp_path):
    write_llama(tmp_path / "base", max_position_embeddings=160)

    def run(output, resume=False, **settings):
        model = adapt(load_base(tmp_path / "base"), "poly", ["animal", "colour"], r=2, seed=3)
        config = TrainingConfig(epochs=1, batch_size=8, routing_statistics=False, **settings)
        trainer = Trainer(model, classes(), Lm(max_new_tokens=2), config, tmp_path / output, progress=None)
        trainer.train(resume=resume)
        return trainer.parameters.data.tobytes()

    plain = run("plain")
    assert run("again", gradient_checkpointing=True) == plain
    assert run("again", resume=True) == plain


def test_a_recipe_takes_it():
    recipe = Recipe.from_dict({"training": {"gradient_checkpointing": True}})
    assert recipe.training.gradient_checkpointing
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(TypeError, match="gradient_checkpointing: expected True or False, got 'yes'"):
        TrainingConfig(gradient_checkpointing="yes")
