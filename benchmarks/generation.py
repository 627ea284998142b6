"""Writing with SmolLM2, with and without Poly adapters on all its linear layers, against transformers + PEFT.

Greedy texts of a fixed length: one alone, and several of mixed tasks at once. The first token tells how fast
prompts are read. Its limit is that of multiply-adds; that of a later token mostly reading every weight once.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from benchmarks import rivals
from benchmarks.machine import Limits
from benchmarks.models import RANK, Ours
from benchmarks.options import Options
from benchmarks.texts import TASKS, drawn
from benchmarks.timing import Candidate, Contest
from polymoe.models import Generation, generate
from polymoe.models.loading import find_base

SMALL = 0.3  # what trained factors B come to, of those that are drawn: texts stay texts
HALF = {"float32": "", "bfloat16": " bf16"}
ALIKE = {"float32": 1e-2, "bfloat16": 1.0}  # logits of two tokens between which rounding may decide


def contests(options: Options) -> Iterator[Contest]:
    """One text and many; one line where the model is not here. ``quick``: one, against the bare base, for
    loading what transformers and PEFT need takes longer than all else."""
    try:
        ours("smollm2", "float32")
    except ModuleNotFoundError as error:
        print(f"no generation: {error}")
        return
    if options.quick:
        yield contest(replace(options, torch=False), "smollm2", 1, 16, 4)
        return
    for B in (1, 16):
        yield contest(options, "smollm2", B, 48, 1)
        yield contest(options, "smollm2", B, 48, 32)


@lru_cache(maxsize=4)
def ours(name: str, dtype: str) -> Any:
    """The adapted model, which never ends a text."""
    model = Ours(name, dtype).model
    model.base.eos_token_ids = ()
    for parameter, p in model.adapter_parameters():
        if parameter.endswith("lora_B"):
            p.data *= SMALL
    return model


@lru_cache(maxsize=4)
def theirs(dtype: str, adapted: bool) -> Any:
    """SmolLM2 by transformers; ``adapted``: with our adapter, read by PEFT."""
    torch, path = rivals.torch(), find_base("smollm2")
    if adapted:
        peft = importlib.import_module("peft")
        with tempfile.TemporaryDirectory() as folder:
            ours("smollm2", dtype).save_adapter(folder)
            model = peft.PeftModel.from_pretrained(copy.deepcopy(theirs(dtype, False)), folder)
        return model.eval().base_model  # whose generate takes task ids
    if dtype == "bfloat16":
        return copy.deepcopy(theirs("float32", False)).to(torch.bfloat16)
    options = {"gguf_file": path.name, "dtype": torch.float32, "attn_implementation": "sdpa"}
    with contextlib.redirect_stderr(io.StringIO()):  # a bar for every tensor
        transformers = importlib.import_module("transformers")
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


def write(name: str, dtype: str, adapted: bool, prompts: np.ndarray, n: int) -> list[Generation]:
    """Our n tokens after each prompt; prompt i is of task i % TASKS."""
    model = ours(name, dtype)
    task_ids = np.arange(len(prompts)) % TASKS if adapted else None
    found = generate(model if adapted else model.base, list(prompts), task_ids, max_new_tokens=n)
    return [text for (text,) in found]


def write_theirs(dtype: str, adapted: bool, prompts: np.ndarray, n: int, **more: Any) -> Any:
    """What transformers' generate returns."""
    ids = rivals.tensor(prompts)
    given = {"input_ids": ids, "attention_mask": rivals.torch().ones_like(ids)} | more
    if adapted:
        given["task_ids"] = rivals.tensor(np.arange(len(prompts)) % TASKS)
    return theirs(dtype, adapted).generate(**given, max_new_tokens=n, do_sample=False)


def contest(options: Options, name: str, B: int, L: int, n: int) -> Contest:
    """B prompts of L tokens, n new ones of each; of n = 1 the prompts' tokens are counted."""
    prompts = drawn(B, L).ids.reshape(B, L) % ours(name, "float32").base.config.vocab_size
    tokens, candidates = float(B * (L if n == 1 else n)), []
    for dtype in dtypes(options):
        half = HALF[dtype]
        sides = [(f"polymoe{half}", f"polymoe{half}, bare", partial(write, name))]
        if options.rivals_in(dtype):
            sides.append((f"PEFT{half}", f"transformers{half}", write_theirs))
        for who, bare, run in sides:
            for adapted in (True, False):
                candidates.append(
                    Candidate(
                        who if adapted else bare,
                        partial(run, dtype, adapted, prompts, n),
                        against=f"polymoe{half}" + ("" if adapted else ", bare"),
                        bare=bare if adapted else None,
                        dtype=dtype,
                        least=least(name, dtype, adapted, B, L, n),
                        tokens=tokens,
                    )
                )
    what = "the first token" if n == 1 else f"{n} tokens"
    return Contest(
        "generation", f"SmolLM2, {B} x {L}, {what}", candidates, partial(check, options, name, prompts, n)
    )


def dtypes(options: Options) -> list[str]:
    """Of frozen weights; one with ``quick``, for reading a model again takes longer than writing."""
    return list(HALF)[: 1 if options.quick else None]


def least(name: str, dtype: str, adapted: bool, B: int, L: int, n: int) -> Callable[[Limits, str], float]:
    """Seconds at the limits: products, and reading every weight and the factors of every task once a step."""
    model = ours(name, dtype)
    shapes = [model.base.get_submodule(layer).weight.shape for layer in model.adapter.layers]
    head = model.base.lm_head.weight
    frozen, term = sum(o * d for o, d in shapes), RANK * sum(o + d for o, d in shapes) * adapted
    read = (frozen + head.shape[0] * head.shape[1]) * head.dtype.itemsize + 4 * term * min(B, TASKS)

    def seconds(limits: Limits, isa: str) -> float:
        def step(rows: int) -> float:
            products = 2.0 * (rows * frozen + B * head.shape[0] * head.shape[1])
            work = products / limits.peaks[isa, dtype] + 2.0 * rows * term / limits.peaks[isa, "float32"]
            return max(work, read / limits.dram)

        return step(B * L) + (n - 1) * step(B)

    return seconds


def check(options: Options, name: str, prompts: np.ndarray, n: int) -> None:
    """The adapter says something; texts are those of transformers, until two tokens are all but alike."""
    for dtype in dtypes(options):
        texts = [write(name, dtype, adapted, prompts, n) for adapted in (True, False)]
        scores = zip(*([text.score for text in side] for side in texts), strict=True)
        assert all(a != b for a, b in scores), "the adapter changes nothing: not timed"
        for adapted, got in zip((True, False), texts if options.rivals_in(dtype) else (), strict=False):
            found = write_theirs(dtype, adapted, prompts, n, return_dict_in_generate=True, output_logits=True)
            want = found.sequences[:, prompts.shape[1] :].numpy()
            other = np.array([text.token_ids for text in got]) != want
            for row in np.flatnonzero(other.any(axis=1)):
                at = int(other[row].argmax())  # what follows is another text
                logits = found.logits[at][row].float()
                gap = float(logits[int(want[row, at])] - logits[got[row].token_ids[at]])
                assert gap < ALIKE[dtype], f"{dtype}: another token, {gap:.2g} less likely: not timed"
