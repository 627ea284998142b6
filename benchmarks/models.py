"""One training step, forward and backward, of a real model with Poly adapters on every linear layer.

``ours`` and ``peft`` build the same step on both sides: MiniLM gives one vector per text, which meets a fixed
gradient; SmolLM2 the mean loss of the next token. Noise for every example is drawn on both sides. Dropout of
the base is off, as for any frozen base. Random weights of the adapters are not zero, so nothing is skipped.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rivals
from benchmarks.texts import TASKS, Texts
from benchmarks.timing import Work
from polymoe import tape
from polymoe.adapters import adapt
from polymoe.batch import Batch
from polymoe.files import read_safetensors
from polymoe.models import load_base
from polymoe.models.likelihood import frozen_head
from polymoe.models.loading import find_base
from polymoe.parameters import FlatParameters
from polymoe.tape import Node, Tape

RANK = 8
SKILLS = 8
PEFT_TARGETS = {"minilm": r".*encoder.*(query|key|value|dense)", "smollm2": r".*(q|k|v|o|gate|up|down)_proj"}


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

    def batch(self, texts: Texts, again: bool = False) -> Batch:
        """A packed batch, with new noise each time; ``again``: blocks are computed again in backward."""
        self.step += 1
        return Batch(
            texts.cu_seqlens, texts.ids, texts.task_ids, step=self.step, gradient_checkpointing=again
        )

    def __call__(self, texts: Texts, dy: np.ndarray | None = None, again: bool = False) -> Any:
        """Forward and backward; the loss, or the vectors."""
        self.model.train()
        batch = self.batch(texts, again)
        with Tape() as recorded:
            y = self.model.embed(batch) if self.name == "minilm" else self.loss(batch, texts)
        recorded.backward(y, dy)
        self.parameters.zero_grad()
        return y.data

    def loss(self, batch: Batch, texts: Texts) -> Any:
        """The mean over all targets."""
        rows = np.flatnonzero(texts.targets) - 1
        x = tape.embedding(rows, self.model(batch))
        return tape.lm_loss(x, frozen_head(self.model), texts.ids[rows + 1])[0]

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
            frozen += 4.0 * float(texts.targets.sum()) * config.hidden_size * config.vocab_size
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

    def labels(self, texts: Texts) -> Any:
        """The targets in place [B, L], -100 elsewhere."""
        labels = np.full((len(texts.lengths), texts.lengths.max()), -100)
        labels[np.arange(labels.shape[1]) < texts.lengths[:, None]] = np.where(texts.targets, texts.ids, -100)
        return self.torch.from_numpy(labels)

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
                y = self.model(**given, labels=self.labels(texts)).loss
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


def same_loss(ours: Ours, theirs: Peft, texts: Texts) -> float:
    """How far the losses of a language model differ, relative: with our adapter on both sides, whose routers
    draw no noise."""
    torch, peft = theirs.torch, importlib.import_module("peft")
    with tempfile.TemporaryDirectory() as folder:
        ours.model.save_adapter(folder)
        values = read_safetensors(Path(folder) / "adapter_model.safetensors")
    peft.set_peft_model_state_dict(theirs.model, {k: torch.from_numpy(v) for k, v in values.items()})
    with ours.model.without_noise():
        got = float(np.asarray(ours.loss(ours.batch(texts), texts)))
    theirs.model.eval()
    with torch.inference_mode():
        want = float(theirs.model(**theirs.padded(texts), labels=theirs.labels(texts)).loss)
    for module in theirs.model.modules():
        module.train(hasattr(module, "module_logits"))  # the routers alone, as they were
    return abs(got / want - 1)
