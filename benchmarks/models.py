"""One training step, forward and backward, of a real model with Poly adapters on every linear layer.

``ours`` and ``peft`` build the same step on both sides: MiniLM gives one vector per text, which meets a fixed
gradient; SmolLM2 the mean loss of the next token. Noise for every example is drawn on both sides. Dropout of
the base is off, as for any frozen base. Random weights of the adapters are not zero, so nothing is skipped.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import rivals
from benchmarks.timing import Work
from polymoe import tape
from polymoe.adapters import adapt
from polymoe.batch import Batch
from polymoe.models import load_base
from polymoe.models.likelihood import frozen_head
from polymoe.models.loading import find_base
from polymoe.parameters import FlatParameters
from polymoe.tape import Node, Tape

TASKS = 8
RANK = 8
SKILLS = 8
PEFT_TARGETS = {"minilm": r".*encoder.*(query|key|value|dense)", "smollm2": r".*(q|k|v|o|gate|up|down)_proj"}


class Texts(NamedTuple):
    """Token ids of texts, end to end, where each starts, and its task."""

    ids: np.ndarray
    cu_seqlens: np.ndarray
    task_ids: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """[B]"""
        return np.diff(self.cu_seqlens)


def drawn(B: int, L: int, seed: int = 0) -> Texts:
    """B texts of L random tokens."""
    ids = np.random.default_rng(seed).integers(1000, 20000, B * L)
    return Texts(ids, np.arange(B + 1) * L, np.arange(B) % TASKS)


class Ours:
    """Our step."""

    def __init__(self, name: str, dtype: str = "float32", **options: Any) -> None:
        self.name = name
        self.base: Any = load_base(name, dtype)
        self.model = adapt(
            self.base,
            "poly",
            [f"task {i}" for i in range(TASKS)],
            r=RANK,
            n_skills=SKILLS,
            target_modules="all-linear",
            init_weights=False,
            **options,
        )
        self.parameters = FlatParameters(self.model.adapter_parameters())
        self.step = 0

    def batch(self, texts: Texts) -> Batch:
        """A packed batch, with new noise each time."""
        self.step += 1
        return Batch(texts.cu_seqlens, texts.ids, texts.task_ids, step=self.step)

    def __call__(self, texts: Texts, dy: np.ndarray | None = None) -> Any:
        """Forward and backward; the loss, or the vectors."""
        self.model.train()
        batch = self.batch(texts)
        with Tape() as recorded:
            y = self.model.embed(batch) if self.name == "minilm" else self._loss(batch)
        recorded.backward(y, dy)
        self.parameters.zero_grad()
        return y.data

    def _loss(self, batch: Batch) -> Any:
        assert batch.token_ids is not None
        rows = np.delete(np.arange(batch.n_tokens), batch.cu_seqlens[1:] - 1)
        x = tape.embedding(rows, self.model(batch))
        return tape.lm_loss(x, frozen_head(self.model), batch.token_ids[rows + 1])[0]

    def frozen(self, texts: Texts, dy: np.ndarray) -> Any:
        """Forward and backward to the embeddings without adapters, of MiniLM."""
        batch = self.batch(texts)
        x = Node(tape.data_of(self.base.embeddings(batch)))
        with Tape() as recorded:
            y = self.base.pool(self.base.encoder(x, batch), batch)
        recorded.backward(y, dy)
        return x.grad

    def work(self, texts: Texts) -> Work:
        """Products forward and dx, attention (12 L d a token and layer, half where it is causal), adapters,
        mixing, the output head; what is elementwise moves 26 values for each of a layer's."""
        config, n = self.base.config, float(texts.cu_seqlens[-1])
        shapes = [self.base.get_submodule(name).weight.shape for name in self.model.adapter.layers]
        width = sum(o + d for o, d in shapes)
        squares = float(np.sum(texts.lengths.astype(float) ** 2))
        attention = 12.0 * squares * config.hidden_size * config.num_hidden_layers
        frozen = 4.0 * n * sum(o * d for o, d in shapes)
        if self.name == "smollm2":
            attention /= 2
            frozen += 4.0 * n * config.hidden_size * config.vocab_size
        adapters = 6.0 * RANK * n * width + 6.0 * len(texts.task_ids) * SKILLS * RANK * width
        between = 4.0 * 26 * n * config.hidden_size * config.num_hidden_layers
        return Work(frozen, attention + adapters, between)


class Peft:
    """PEFT's step; texts are padded to the longest."""

    def __init__(self, name: str, adapted: bool = True) -> None:
        self.torch = rivals.torch()
        transformers, peft = (importlib.import_module(m) for m in ("transformers", "peft"))
        path = find_base(name)
        options = {"dtype": self.torch.float32, "attn_implementation": "sdpa"}
        self.name, self.adapted = name, adapted
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for every tensor
            if name == "minilm":
                model = transformers.BertModel.from_pretrained(path, add_pooling_layer=False, **options)
            else:
                options["gguf_file"] = path.name
                model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options)
        self.model = model.eval().requires_grad_(False)
        if adapted:
            config = peft.PolyConfig(
                task_type={"minilm": "FEATURE_EXTRACTION", "smollm2": "CAUSAL_LM"}[name],
                r=RANK,
                n_skills=SKILLS,
                n_tasks=TASKS,
                target_modules=PEFT_TARGETS[name],
                init_weights=False,
            )
            self.model = peft.get_peft_model(self.model, config)  # its routers are in training

    def padded(self, texts: Texts) -> dict[str, Any]:
        """Token ids [B, L] and the mask."""
        mask = np.arange(texts.lengths.max()) < texts.lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = texts.ids
        given = {"input_ids": self.torch.from_numpy(ids)}
        given["attention_mask"] = self.torch.from_numpy(mask.astype(np.int64))
        return given | ({"task_ids": self.torch.from_numpy(texts.task_ids)} if self.adapted else {})

    def __call__(self, texts: Texts, dy: np.ndarray | None = None, bf16: bool = False) -> Any:
        """Forward and backward; without an adapter, to the embeddings."""
        torch, given = self.torch, self.padded(texts)
        mask = given["attention_mask"]
        if not self.adapted:
            embedded = self.model.get_input_embeddings()(given.pop("input_ids"))
            given["inputs_embeds"] = embedded.detach().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if self.name == "minilm":
                hidden = self.model(**given).last_hidden_state.float()
                weights = mask[..., None].float()
                pooled = (hidden * weights).sum(1) / weights.sum(1)
                y = torch.nn.functional.normalize(pooled, dim=-1)
            else:
                labels = given["input_ids"].masked_fill(mask == 0, -100)
                y = self.model(**given, labels=labels).loss
        y.backward(None if dy is None else torch.from_numpy(dy))
        self.model.zero_grad(set_to_none=True)
        return y.detach()


def same_function(name: str, ours: Ours, theirs: Peft, texts: Texts) -> float:
    """How far the two models differ without adapters' noise, relative to the largest value: their bases."""
    torch = rivals.torch()
    batch = Batch(texts.cu_seqlens, texts.ids)
    with torch.inference_mode():
        given = {k: v for k, v in theirs.padded(texts).items() if k != "task_ids"}
        base = theirs.model.get_base_model() if theirs.adapted else theirs.model
        if theirs.adapted:
            theirs.model.base_model.disable_adapter_layers()
        output = base(**given, **({"output_hidden_states": True} if name == "smollm2" else {}))
        hidden = output.last_hidden_state if name == "minilm" else output.hidden_states[-1]
        if theirs.adapted:
            theirs.model.base_model.enable_adapter_layers()
    want = hidden.numpy()[given["attention_mask"].numpy() == 1]
    return float(np.abs(tape.data_of(ours.base(batch)) - want).max() / np.abs(want).max())


def real_texts(base: Any, files: Sequence[Any], batch_size: int, n_batches: int, most: int) -> list[Texts]:
    """Batches of real texts of several files, one task each, in a random order, cut to ``most`` tokens."""
    tokenizer = type(base.tokenizer)(base.tokenizer.tokenizer, most)
    per_file = -(-batch_size * n_batches // len(files))
    texts, tasks = [], []
    for task, path in enumerate(files):
        lines = path.read_text(encoding="utf-8").splitlines()[:per_file]
        texts += [json.loads(line)["input"] for line in lines]
        tasks += [task % TASKS] * len(lines)
    order = np.random.default_rng(0).permutation(len(texts))
    tokens, task_ids = tokenizer.encode(texts), np.array(tasks)
    batches = [order[i * batch_size : (i + 1) * batch_size] for i in range(n_batches)]
    return [Texts(*tokens.take(rows), task_ids[rows]) for rows in batches]
