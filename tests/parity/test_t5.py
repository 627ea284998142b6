"""The T5 family against transformers and PEFT: random models that transformers saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_t5 import tiny_tokenizer
from transformers_side import (
    assert_beams_are_theirs,
    assert_gradients_are_those_of_peft,
    assert_greedy_texts_are_theirs,
    off,
    padded,
)

from polymoe import tape
from polymoe.adapters import adapt
from polymoe.batch import Batch, Source
from polymoe.interop.export import export_task
from polymoe.models import T5, T5Config, load_base
from polymoe.training.objectives import Lm
from polymoe.training.objectives.lm import Targets

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SOURCES = [7, 200, 1, 50, 12]
TARGETS = [5, 150, 1, 2, 20]
SIZES = {
    "vocab_size": 300, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 3, "num_decoder_layers": 2,
    "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip
V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MODELS = {  # "own head": one that differs from the table
    "v1.0": ("T5", {}),
    "v1.1": ("T5", V11 | {"own head": True}),
    "lm-adapted": ("T5", V11 | {"own head": True, "num_layers": 1}),
    "flan-t5": ("T5", V11 | {"own head": True, "relative_attention_num_buckets": 12, "d_kv": 16}),
    "v1.1 tied by its writer": ("T5", V11),
    "mt5": ("MT5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "own head": True}),
    "silu": ("T5", {"feed_forward_proj": "gated-silu", "relative_attention_max_distance": 40}),
}
RNG = np.random.default_rng(5)
IDS = [RNG.integers(2, 300, sum(lengths)) for lengths in (SOURCES, TARGETS)]
MASKS = [np.arange(max(lengths)) < np.array(lengths)[:, None] for lengths in (SOURCES, TARGETS)]
PROMPTS = [[5, 9, 11, 1], [7, 1], [6, 6, 19, 8, 30, 31, 5, 44, 1], [12, 40, 1]]


def save(folder: Path, kind: str, dtype: Any = torch.float32, shards: bool = False, **more: Any) -> Any:
    """A random model of transformers, its norms and biases random too, in a folder with a tokenizer."""
    family, fields = MODELS[kind]
    own = "own head" in fields
    torch.manual_seed(1)
    config = getattr(transformers, family + "Config")(
        **SIZES | {n: v for n, v in fields.items() if n != "own head"} | more
    )
    model = getattr(transformers, family + "ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.normal_(1, 0.3)
            elif "relative_attention_bias" in name:
                parameter.normal_(0, 1)
        if own:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 7)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": "40KB"} if shards else {}))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return model


def from_torch(folder: Path) -> Any:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


def batch(**fields: Any) -> Batch:
    cu_seqlens = [np.cumsum([0, *lengths]) for lengths in (SOURCES, TARGETS)]
    return Batch(cu_seqlens[1], IDS[1], source=Source(IDS[0], cu_seqlens[0]), **fields)


def their_logits(model: Any, **given: Any) -> Any:
    """[N, V]"""
    source, target = (padded(ids, mask) for ids, mask in zip(IDS, MASKS, strict=True))
    masked = {"attention_mask": torch.tensor(MASKS[0]).long()}
    out = model(input_ids=source, decoder_input_ids=target, **masked, **given).logits
    return out[torch.tensor(MASKS[1])]


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    save(tmp_path, kind)
    base: Any = load_base(tmp_path)
    with torch.inference_mode():
        expected = their_logits(from_torch(tmp_path)).numpy()
    assert expected.std() > 0.1
    assert off(base.logits(base(batch())), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_shards_are_read_as_transformers_reads_them(tmp_path: Path, dtype: Any) -> None:
    save(tmp_path, "flan-t5", dtype, shards=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    base: Any = load_base(tmp_path)
    with torch.inference_mode():
        expected = their_logits(from_torch(tmp_path)).numpy()
    assert off(base.logits(base(batch())), expected) < 1e-5


@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (32, 100), (12, 40), (8, 20), (64, 1000), (4, 3)])
def test_buckets_are_those_of_transformers(buckets: int, most: int) -> None:
    config = T5Config(
        **{n: v for n, v in SIZES.items() if n != "decoder_start_token_id"},
        relative_attention_num_buckets=buckets, relative_attention_max_distance=most,
    )  # fmt: skip
    distances = torch.arange(-most, most + 1)
    far = torch.tensor([-100 * most, 100 * most])
    attention = transformers.models.t5.modeling_t5.T5Attention
    for both in (True, False):
        expected = attention._relative_position_bucket(distances, both, buckets, most).numpy()
        np.testing.assert_array_equal(config.buckets(both), expected)
        ends = attention._relative_position_bucket(far, both, buckets, most).numpy()
        np.testing.assert_array_equal(config.buckets(both)[[0, -1]], ends)


@pytest.mark.parametrize("kind", ["v1.1", "v1.0", "flan-t5"])
@pytest.mark.parametrize("method", ["lora", "poly", "mhr"])
def test_gradients_of_adapters_are_those_of_peft(tmp_path: Path, kind: str, method: str) -> None:
    save(tmp_path / "base", kind)
    base, theirs = load_base(tmp_path / "base"), from_torch(tmp_path / "base")
    n_layers = 3 * (7 - (kind == "v1.0")) + 2 * (11 - (kind == "v1.0"))
    assert_gradients_are_those_of_peft(
        base, theirs, batch, their_logits, tmp_path / "adapter", method, n_layers, target_modules="all-linear"
    )


@pytest.mark.parametrize("kind", ["v1.1", "v1.0"])
def test_an_exported_task_gives_the_same_logits_there(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "base", kind)
    base: Any = load_base(tmp_path / "base")
    options: dict[str, Any] = {"r": 3, "init_weights": False, "target_modules": "all-linear"}
    model: Any = adapt(base, "poly", ["a", "b"], **options).eval()
    ours = base.logits(model(batch(task_ids=np.ones(5, np.int64))))
    assert off(base.logits(base(batch())), ours) > 0.01
    for to in ("merged", "peft"):
        export_task(model, "b", to, tmp_path / to)
    theirs = [
        from_torch(tmp_path / "merged"),
        peft.PeftModel.from_pretrained(from_torch(tmp_path / "base"), tmp_path / "peft").base_model,
    ]
    for other in theirs:
        with torch.inference_mode():
            assert off(ours, their_logits(other).numpy()) < 1e-5


def test_default_targets_are_those_of_peft() -> None:
    theirs = peft.utils
    lora = theirs.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["t5"]
    ia3 = theirs.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING["t5"]
    feedforward = theirs.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING["t5"]
    assert list(T5.default_target_modules) == lora
    assert (list(T5.ia3_target_modules), list(T5.ia3_feedforward_modules)) == (ia3, feedforward)


@pytest.mark.parametrize("kind", ["v1.1", "v1.0", "flan-t5"])
def test_greedy_texts_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    save(tmp_path, kind)
    assert_greedy_texts_are_theirs(load_base(tmp_path), from_torch(tmp_path), PROMPTS)


@pytest.mark.parametrize(
    ("kind", "early_stopping", "length_penalty"),
    [("v1.1", False, 1.0), ("v1.0", False, 0.0), ("flan-t5", True, 2.0)],
)
def test_beams_are_those_of_transformers(
    tmp_path: Path, kind: str, early_stopping: bool, length_penalty: float
) -> None:
    save(tmp_path, kind)
    base, theirs, ends = load_base(tmp_path), from_torch(tmp_path), list(range(3, 300, 4))
    options = {"early_stopping": early_stopping, "length_penalty": length_penalty}
    assert_beams_are_theirs(base, theirs, PROMPTS, ends, **options)


def test_the_loss_is_that_of_labels(tmp_path: Path) -> None:
    save(tmp_path, "v1.1")
    base: Any = load_base(tmp_path)
    model = adapt(base, "poly", ["a"], r=2).eval()
    rng = np.random.default_rng(0)
    lengths, prompts = np.array([9, 4, 17]), np.array([5, 1, 16])
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(2, 300, cu_seqlens[-1])
    together = Batch(cu_seqlens, ids, np.zeros(3, np.int64), prompt_lengths=prompts)
    follows, rows = base.follow(together)
    spans = zip(cu_seqlens, cu_seqlens[1:], prompts, strict=False)
    after = np.concatenate([ids[a + n : b] for a, b, n in spans])
    targets = Targets(rows, after, None, np.concatenate([[0], np.cumsum(lengths - prompts)]))
    loss = Lm().loss(model, replace(follows, targets=targets))
    source, labels = torch.zeros(3, 16, dtype=torch.long), torch.full((3, 4), -100)
    for i, (a, b, n) in enumerate(zip(cu_seqlens, cu_seqlens[1:], prompts, strict=False)):
        source[i, :n], labels[i, : b - a - n] = torch.tensor(ids[a : a + n]), torch.tensor(ids[a + n : b])
    mask = torch.arange(16)[None] < torch.tensor(prompts)[:, None]
    with torch.no_grad():
        want = from_torch(tmp_path)(input_ids=source, attention_mask=mask.long(), labels=labels).loss
    assert float(tape.data_of(loss.mean)) == pytest.approx(float(want), rel=1e-5)
