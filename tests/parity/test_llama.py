"""The Llama family against transformers and PEFT: random models that transformers saved."""

import numpy as np
import pytest
from tiny_llama import tiny_tokenizer

from polymoe import tape
from polymoe.adapters import adapt
from polymoe.batch import Batch
from polymoe.models import Llama, load_base

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
OLD_NAME = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT asks transformers by it
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings(OLD_NAME)]

LENGTHS = [5, 30, 1, 64, 17]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large enough for attention and activation to matter
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama 2": ("Llama", {"rms_norm_eps": 1e-5, "num_key_value_heads": 6}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "linear": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            "attention_bias": True,
        },
    ),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 3}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 10}),
    "mistral with a window": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    "qwen2.5": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}
RNG = np.random.default_rng(5)
IDS = RNG.integers(3, 300, sum(LENGTHS))
MASK = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


def save(folder, kind, dtype=torch.float32, shards=False, **more):
    """A random model of transformers, its norms and biases random too, in a folder with a tokenizer."""
    family, fields = MODELS[kind]
    torch.manual_seed(1)
    config = getattr(transformers, family + "Config")(**SIZES | fields | more)
    model = getattr(transformers, family + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": "40KB"} if shards else {}))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def from_torch(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def batch(**fields):
    return Batch(np.cumsum([0, *LENGTHS]), IDS, **fields)


def padded(packed):
    """[N] -> [B, L]"""
    out = np.zeros(MASK.shape, packed.dtype)
    out[MASK] = packed
    return torch.tensor(out)


def their_logits(model, **given):
    """[N, V]"""
    out = model(input_ids=padded(IDS), attention_mask=torch.tensor(MASK).long(), **given).logits
    return out[torch.tensor(MASK)]


def off(ours, theirs):
    """The largest difference, in units of the largest value where that is above 1."""
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_transformers(tmp_path, kind):
    folder = save(tmp_path, kind)
    base = load_base(folder)
    with torch.inference_mode():
        expected = their_logits(from_torch(folder)).numpy()
    assert expected.std() > 0.1
    assert off(base.logits(base(batch())), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_shards_are_read_as_transformers_reads_them(tmp_path, dtype):
    folder = save(tmp_path, "qwen2", dtype, shards=True)
    assert len(list(folder.glob("*.safetensors"))) > 2
    base = load_base(folder)
    with torch.inference_mode():
        expected = their_logits(from_torch(folder)).numpy()
    assert off(base.logits(base(batch())), expected) < 1e-5


@pytest.mark.parametrize("kind", ["llama 3", "mistral", "qwen2"])
@pytest.mark.parametrize("method", ["lora", "poly", "mhr"])
def test_gradients_of_adapters_are_those_of_peft(tmp_path, kind, method):
    folder = save(tmp_path / "base", kind)
    base = load_base(folder)
    options = {"r": 4, "lora_alpha": 8, "init_weights": False}
    options |= {} if method == "lora" else {"n_skills": 3, "noise": "off", "lora_alpha": None}
    options |= {"n_splits": 2} if method == "mhr" else {}
    model = adapt(base, method, ["a", "b", "c"], seed=4, **options).train()
    model.save_adapter(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(from_torch(folder), tmp_path / "adapter", is_trainable=True)
    for module in theirs.modules():
        if type(module).__name__ == "PolyRouter":
            module.eval()
    tasks = np.array([2, 0, 1, 2, 0])
    dy = np.random.default_rng(2).normal(size=(len(IDS), 300)).astype(np.float32) / len(IDS)
    logits = their_logits(
        theirs.base_model, **({} if method == "lora" else {"task_ids": torch.tensor(tasks)})
    )
    (logits * torch.tensor(dy)).sum().backward()
    with tape.Tape() as recorded:
        y = base.logits(model(batch(task_ids=tasks)))
    recorded.backward(y, dy)
    assert off(y.data, logits.detach().numpy()) < 1e-5
    grads = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}
    assert len(grads) == len(model.adapter_parameters()) == 6 * (2 if method == "lora" else 3)
    for name, parameter in model.adapter_parameters():
        layer, part = name.rsplit(".", 2)[0], name.rpartition(".")[2]
        theirs_part = {"logits": "module_logits"}.get(part, part)
        found = [g for n, g in grads.items() if f".{layer}." in n and theirs_part in n]
        assert len(found) == 1, name
        expected = ours_of(part, found[0], parameter.shape)
        error = np.linalg.norm(parameter.grad - expected) / np.linalg.norm(expected)
        assert error < 1e-4, (name, error)


def ours_of(part, array, shape):
    """An array in PEFT's layout in ours."""
    if array.ndim == 4:
        return array.transpose((1, 3, 0, 2) if part == "lora_A" else (1, 2, 0, 3)).reshape(shape)
    return (array.T if part == "lora_B" else array).reshape(shape)


def test_default_targets_are_those_of_peft():
    theirs = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for kind in ("llama", "mistral", "qwen2"):
        assert list(Llama.default_target_modules) == theirs[kind]
