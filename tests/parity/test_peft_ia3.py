"""(IA)3 against PEFT's: the same modules by default, and with the same vectors the same hidden states."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from peft.utils import constants  # noqa: E402
from tiny_bert import write_bert  # noqa: E402

from polymoe.adapters import adapt  # noqa: E402
from polymoe.batch import Batch  # noqa: E402
from polymoe.models import load_base  # noqa: E402
from polymoe.models.bert import Bert  # noqa: E402
from polymoe.models.llama import Llama  # noqa: E402
from polymoe.tape import data_of  # noqa: E402


@pytest.mark.parametrize(
    "fields", [{}, {"target_modules": ["query", "dense"], "feedforward_modules": ["dense"]}]
)
def test_the_same_vectors_give_the_same_hidden_states(tmp_path, fields):
    folder = write_bert(tmp_path / "bert")
    model = adapt(load_base(folder), "ia3", **fields)
    bert = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    theirs = peft.get_peft_model(bert, peft.IA3Config(**fields)).eval()
    vectors = {
        name.removeprefix("base_model.model.").replace("ia3_l.default", "experts.vectors"): p
        for name, p in theirs.named_parameters()
        if "ia3_l" in name
    }
    ours = dict(model.adapter_parameters())
    assert ours.keys() == vectors.keys()
    rng = np.random.default_rng(0)
    for name, p in ours.items():
        p.data[...] = rng.uniform(0.5, 1.5, p.shape)
        vectors[name].data = torch.from_numpy(p.data).reshape(vectors[name].shape)
    ids = rng.integers(5, 20, (3, 7))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(ids)).last_hidden_state.numpy()
    y = data_of(model(Batch(np.arange(4) * 7, ids.reshape(-1))))
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=0, atol=5e-6)


def test_the_usual_modules_are_theirs():
    targets = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    inputs = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    for name, family in (("bert", Bert), ("llama", Llama)):
        assert list(family.ia3_target_modules) == targets[name]
        assert list(family.ia3_feedforward_modules) == inputs[name]
