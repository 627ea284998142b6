"""Arrow against PEFT's, over the same LoRA folders: the same prototypes but for sign, the same outputs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
arrow = pytest.importorskip("peft.tuners.lora.arrow")

from tiny_bert import write_bert  # noqa: E402

from polymoe.adapters import AdaptedModel  # noqa: E402
from polymoe.batch import Batch  # noqa: E402
from polymoe.models import load_base  # noqa: E402
from polymoe.tape import data_of  # noqa: E402


def test_the_same_loras_give_the_same_hidden_states(tmp_path):
    folder = write_bert(tmp_path / "bert")
    model = AdaptedModel(load_base(folder))
    sources = []
    for seed in range(4):
        sources.append(f"lora {seed}")
        model.add_adapter(sources[-1], "lora", seed=seed, r=3, lora_alpha=6, init_weights=False)
        for layer in model.adapters[sources[-1]].layers.values():
            layer.experts.lora_B.data[:, 0] *= 8  # PEFT takes 15 steps of a power iteration: let them suffice
        model.save_adapter(tmp_path / sources[-1], sources[-1])
    model.add_adapter("arrow", "arrow", init_from=sources, top_k=2, temperature=0.5)
    model.set_adapter("arrow")

    bert = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    config = peft.ArrowConfig(top_k=2, router_temperature=0.5, rng_seed=0)
    theirs = arrow.create_arrow_model(bert, [str(tmp_path / name) for name in sources], config).eval()
    ids = np.random.default_rng(0).integers(5, 20, (3, 7))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(ids)).last_hidden_state.numpy()
    y = data_of(model(Batch(np.arange(4) * 7, ids.reshape(-1)))).reshape(expected.shape)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)
    with model.disable_adapter():
        assert (
            np.abs(data_of(model(Batch(np.arange(4) * 7, ids.reshape(-1)))).reshape(y.shape) - y).max() > 0.1
        )
    found = {name: m.prototypes.numpy() for name, m in theirs.named_modules() if hasattr(m, "prototypes")}
    layers = model.adapter.layers
    assert len(found) == len(layers)
    for name, made in layers.items():
        vectors = next(v for key, v in found.items() if f"{name}." in key)
        signs = np.sign((vectors * made.router.prototypes.data).sum(1, keepdims=True))
        np.testing.assert_allclose(made.router.prototypes.data, signs * vectors, rtol=0, atol=2e-6)
