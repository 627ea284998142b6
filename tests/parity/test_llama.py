"""The Llama family against transformers and PEFT: random models that transformers saved."""

import numpy as np
import pytest
from tiny_llama import tiny_tokenizer
from transformers_side import assert_gradients_are_those_of_peft, off, padded

from polymoe.batch import Batch
from polymoe.models import Llama, load_base

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

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


def their_logits(model, **given):
    """[N, V]"""
    out = model(input_ids=padded(IDS, MASK), attention_mask=torch.tensor(MASK).long(), **given).logits
    return out[torch.tensor(MASK)]


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
    base, theirs = load_base(folder), from_torch(folder)
    assert_gradients_are_those_of_peft(base, theirs, batch, their_logits, tmp_path / "adapter", method, 6)


def test_default_targets_are_those_of_peft():
    theirs = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for kind in ("llama", "mistral", "qwen2"):
        assert list(Llama.default_target_modules) == theirs[kind]
