"""``lm``: the output is written, token by token, after a prompt that holds the input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np

from polymoe import tape
from polymoe.batch import Batch, Routings
from polymoe.data import EncodedSplit, TaskData, Tokens, has_labels, labels
from polymoe.data.chat import ChatTemplate
from polymoe.data.prompts import Context, Template, TemplateName, encode_prompts, end_of_answer
from polymoe.models.generate import Generation, generate
from polymoe.models.likelihood import frozen_head, likelihoods
from polymoe.models.search import GenerationConfig
from polymoe.tape import current_tape
from polymoe.training.metrics import Evaluation, accuracy, best_match, rouge, summarize
from polymoe.training.objectives.base import BATCH_TOKENS as LOSS_TOKENS
from polymoe.training.objectives.base import Loss, Objective, Observe, Prediction


@dataclass(frozen=True)
class LmOptions:
    """How texts are made of examples, and what the loss is a mean of."""

    template: TemplateName = "plain"
    """How a prompt looks: the input and the separator (plain), the task's definition and the input
    (instruction), or the base's chat template (chat)."""
    separator: str = "\n"
    """Between input and output (template plain)."""
    demonstrations: int = 0
    """Examples of the task shown in every prompt, where the data have them (templates instruction and
    chat)."""
    loss_mean: Literal["token", "example"] = "token"
    """The loss is the mean over all target tokens of a step, as in transformers, or over its examples, each
    with the mean over its own."""
    max_new_tokens: int = 64
    """Tokens of a text that is written in an evaluation, at most."""
    evaluate_before: bool = False
    """Evaluate on test before training too, which means writing its texts."""
    eval_examples: int | None = None
    """Test examples of a task that training evaluates at most, the same ones in every run; None takes all.
    `polymoe evaluate` takes all."""

    def __post_init__(self) -> None:
        if self.template not in ("plain", "instruction", "chat"):
            raise ValueError(f"template: expected plain, instruction or chat, got {self.template!r}")
        if self.loss_mean not in ("token", "example"):
            raise ValueError(f"loss_mean: expected token or example, got {self.loss_mean!r}")
        if not isinstance(self.separator, str):
            raise TypeError(f"separator: expected a string, got {self.separator!r}")
        GenerationConfig(max_new_tokens=self.max_new_tokens)
        n_eval = 1 if self.eval_examples is None else self.eval_examples
        for name, value in (("demonstrations", self.demonstrations), ("eval_examples", n_eval)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
        if n_eval < 1:
            raise ValueError(f"eval_examples: expected an integer from 1 on, got {n_eval}")
        if self.demonstrations < 0 or (self.template == "plain" and self.demonstrations):
            raise ValueError(
                f"demonstrations: expected 0 (template plain) or more, got {self.demonstrations}"
            )


@dataclass(frozen=True, eq=False)
class LmSplit(EncodedSplit):
    """``tokens`` are those of prompt and target; ``prompt_lengths`` [n] says how many belong to the
    prompt."""

    prompt_lengths: np.ndarray

    @property
    def inputs(self) -> Tokens:
        """The tokens of the prompts."""
        offsets = np.concatenate([[0], np.cumsum(self.prompt_lengths)]).astype(np.int64)
        ids = np.concatenate([*self.prompts(), np.empty(0, np.int32)])
        return replace(self.tokens, ids=ids, cu_seqlens=offsets)

    def prompts(self) -> list[np.ndarray]:
        """The tokens of each prompt."""
        starts, ids = self.tokens.cu_seqlens, self.tokens.ids
        return [ids[a : a + n] for a, n in zip(starts, self.prompt_lengths, strict=False)]


class Targets(NamedTuple):
    """The rows of a batch that have a target token after them [n], that token [n], its weight in the mean
    [n] or None, and where each example's start [B + 1]."""

    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    offsets: np.ndarray


class Lm(Objective):
    """Cross entropy of the output's tokens, and of the one that ends a text, after the prompt.

    Prompt and target are encoded apart, so that what is learnt is what is met when a text is written. Of a
    text that is too long the prompt is cut (:func:`polymoe.data.prompts.encode_prompts`), and the target only
    where it is more than half of what the base takes; a base with an encoder has room for either text, and
    the prompt ends as its texts do. Evaluated by what is written (exact match, ROUGE),
    where outputs are a set of labels also by which of them is likeliest (accuracy: the mean log probability
    of a label's tokens, the ending one too), and by the loss, which selects the best step unless the
    configuration says otherwise.
    """

    name = "lm"
    lower_is_better = frozenset({"loss", "perplexity"})
    metrics = ("loss", "perplexity", "exact_match", "accuracy", "rouge1", "rougeL")

    def __init__(self, options: LmOptions | None = None, **fields: Any) -> None:
        super().__init__()
        self._set(replace(options or LmOptions(), **fields))
        self.contexts: dict[str, Context] = {}
        self.labels: dict[str, tuple[str, ...] | None] = {}  # None: free text

    def _set(self, options: LmOptions) -> None:
        self.options = options
        self.zero_shot, self.eval_examples = options.evaluate_before, options.eval_examples

    def _template(self, model: Any) -> Template:
        o, chat = self.options, None
        if o.template == "chat":
            chat = ChatTemplate.of(self.tokenizer(model), model.base.eos_token_ids)
        return Template(o.template, o.separator, o.demonstrations, chat)

    # ---- what it knows of its tasks

    def _prepare(self, model: Any, tasks: Mapping[str, TaskData]) -> None:
        frozen_head(model)
        self.contexts, self.labels = {}, {}
        for task in tasks.values():
            self._add_task(model, task)

    def _add_task(self, model: Any, task: TaskData) -> None:
        context = self._template(model).context(task)
        several = len({e.output for e in task.train + task.valid}) > 1
        self.labels[task.name] = labels(task) if several and has_labels(task) else None
        self.contexts[task.name] = context

    def settings(self) -> dict[str, Any]:
        """With the options, and what each task's prompts hold."""
        contexts = {
            name: {"definition": c.definition, "demonstrations": [list(d) for d in c.demonstrations]}
            for name, c in self.contexts.items()
        }
        known = {name: own and list(own) for name, own in self.labels.items()}
        return {**super().settings(), **self.recipe(), "contexts": contexts, "labels": known}

    def recipe(self) -> dict[str, Any]:
        """The options."""
        return {"lm": asdict(self.options)}

    def _restore(self, model: Any, settings: Mapping[str, Any]) -> None:
        self._set(LmOptions(**settings["lm"]))
        self.labels = {name: own and tuple(own) for name, own in settings["labels"].items()}
        self.contexts = {
            name: Context(c["definition"], tuple((x, y) for x, y in c["demonstrations"]))
            for name, c in settings["contexts"].items()
        }
        frozen_head(model)

    # ---- texts to tokens

    def encode(self, model: Any, tasks: Mapping[str, TaskData], split: str) -> LmSplit:
        """Prompts and targets of one split."""
        parts = {name: task.split(split) for name, task in tasks.items()}
        parts = {name: examples for name, examples in parts.items() if examples}
        examples = tuple(example for part in parts.values() for example in part)
        targets = self._targets(model, [e.output for e in examples])
        most = self.tokenizer(model).max_length
        room = model.base.target_room(most)
        cut = np.array([len(target) > room for target in targets], bool)
        targets = [target[:room] for target in targets]
        for example, target in zip(examples, targets, strict=True):
            if not target:
                raise ValueError(f"{example.where}: output: expected text (the base ends no text), got none")
        rooms = [model.base.prompt_room(most, len(target)) for target in targets]
        prompts = self._prompts(model, [e.input for e in examples], [e.task for e in examples], rooms)
        pieces = [piece for p, t in zip(prompts, targets, strict=True) for piece in (p.ids, t)]
        lengths = np.array([len(piece) for piece in pieces], np.int64).reshape(-1, 2)
        tokens = Tokens(
            np.concatenate(pieces).astype(np.int32) if pieces else np.empty(0, np.int32),
            np.concatenate([[0], np.cumsum(lengths.sum(axis=1))]),
            cut | np.array([p.cut > 0 for p in prompts], bool),
            np.array([not e.input.strip() for e in examples], bool),
        )
        return LmSplit(
            examples,
            tokens,
            model.tasks.ids([e.task for e in examples]),
            np.array([e.example_id for e in examples], np.int64),
            {name: len(part) for name, part in parts.items()},
            lengths[:, 0],
        )

    def _prompts(self, model: Any, texts: Sequence[str], names: Sequence[str], rooms: Sequence[int]) -> Any:
        template = self._template(model)
        made = [template.prompt(t, self.contexts[name]) for t, name in zip(texts, names, strict=True)]
        begin, end = template.chat is None, model.base.encoder_decoder
        encoded = encode_prompts(made, self.tokenizer(model), rooms, begin, end)
        for text, prompt in zip(texts, encoded, strict=True):
            if not len(prompt.ids):
                raise ValueError(f"input: expected at least one token in a prompt, got {text!r}")
        return encoded

    def _targets(self, model: Any, outputs: Sequence[str]) -> list[list[int]]:
        """Tokens of outputs, each with the one that ends a text."""
        template, tokenizer = self._template(model), self.tokenizer(model)
        end = end_of_answer(template.chat, tokenizer, model.base.eos_token_ids)
        encodings = tokenizer.tokenizer.encode_batch_fast(
            [template.output(text) for text in outputs], add_special_tokens=False
        )
        return [encoding.ids + end for encoding in encodings]

    # ---- loss

    def batch(self, model: Any, split: EncodedSplit, indices: np.ndarray, seed: int, step: int) -> Batch:
        """Targets are tokens, and the rows that they come after."""
        assert isinstance(split, LmSplit)
        batch = replace(
            split.batch(indices, seed=seed, step=step), prompt_lengths=split.prompt_lengths[indices]
        )
        prompt, starts = batch.prompt
        assert batch.token_ids is not None and prompt is not None
        offsets = batch.cu_seqlens - starts
        counts, weights = np.diff(offsets), None
        if self.options.loss_mean == "example":
            weights = np.repeat(1 / counts, counts).astype(model.base.dtype)
        tokens = np.delete(batch.token_ids, prompt)
        follows: Batch
        follows, rows = model.base.follow(batch)
        return replace(follows, targets=Targets(rows, tokens, weights, offsets))

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross entropy of the targets."""
        rows, tokens, weights, offsets = batch.targets
        x = tape.embedding(rows, model(batch))
        loss, per_token = tape.lm_loss(
            x, frozen_head(model), tokens, weights, gradient=current_tape() is not None
        )
        counts = np.diff(offsets)
        per_example = np.add.reduceat(per_token.astype(np.float64), offsets[:-1]) / counts
        return Loss(loss, per_example, None if weights is not None else counts.astype(np.float64))

    # ---- use

    def write(
        self, model: Any, texts: Sequence[str], task: str | Sequence[str], **options: Any
    ) -> list[list[Generation]]:
        """Outputs for inputs of a task, or of one task each, as :func:`polymoe.models.generate` gives them;
        ``options`` are its."""
        names = self._names(texts, task)
        n_new = options.setdefault("max_new_tokens", self.options.max_new_tokens)
        most = self.tokenizer(model).max_length
        room = min(model.base.prompt_room(most, 1), model.base.prompt_room(model.base.max_length, n_new))
        encoded = self._prompts(model, texts, names, [room] * len(texts))
        written = generate(model, [p.ids for p in encoded], names, **options)
        return [
            [replace(text, text=text.text.strip(), cut=text.cut + p.cut) for text in own]
            for own, p in zip(written, encoded, strict=True)
        ]

    def _predict_texts(
        self,
        model: Any,
        texts: Sequence[str],
        names: list[str],
        candidates: Sequence[str] | None,
        batch_tokens: int,
    ) -> list[Prediction]:
        """The likeliest of the candidates or labels; where outputs are free text, what is written, with the
        geometric mean of its tokens' probabilities."""
        chosen: list[Sequence[str]] = [candidates or self.labels[name] or () for name in names]
        result: list[Prediction | None] = [None] * len(texts)
        if free := [i for i, own in enumerate(chosen) if not own]:
            written = self.write(model, [texts[i] for i in free], [names[i] for i in free])
            for i, (text,) in zip(free, written, strict=True):
                result[i] = Prediction(text.text, math.exp(text.score), {})
        if ranked := [i for i, own in enumerate(chosen) if own]:
            room = self.tokenizer(model).max_length
            longest = {i: max(map(len, self._targets(model, chosen[i]))) for i in ranked}
            prompts = self._prompts(
                model,
                [texts[i] for i in ranked],
                [names[i] for i in ranked],
                [model.base.prompt_room(room, longest[i]) for i in ranked],
            )
            scores = likelihoods(
                model,
                [p.ids for p in prompts],
                [self._targets(model, chosen[i]) for i in ranked],
                [names[i] for i in ranked],
            )
            for i, mean in zip(ranked, scores, strict=True):
                p = np.exp(mean)
                best = int(mean.argmax())
                found = dict(zip(chosen[i], p.tolist(), strict=True))
                result[i] = Prediction(chosen[i][best], float(p[best]), found)
        return [prediction for prediction in result if prediction is not None]

    def validate(self, model: Any, split: EncodedSplit, metric: str, observe: Observe = None) -> Evaluation:
        """The loss alone where that selects: texts take long to write."""
        return self._evaluate_split(model, split, observe=observe, write=metric not in self.lower_is_better)

    def evaluate(
        self, model: Any, split: EncodedSplit, batch_tokens: int = LOSS_TOKENS, observe: Observe = None
    ) -> Evaluation:
        """Metrics of what is written, of the likeliest labels, and of the loss, task by task. ROUGE where the
        package rouge-score is installed, with a warning where it is not. ValueError without examples."""
        return self._evaluate_split(model, split, batch_tokens, observe)

    def _evaluate_split(
        self,
        model: Any,
        split: EncodedSplit,
        batch_tokens: int = LOSS_TOKENS,
        observe: Observe = None,
        write: bool = True,
    ) -> Evaluation:
        assert isinstance(split, LmSplit)
        if not len(split):
            raise ValueError("split: expected at least one example, got none")
        self.check_tasks(list(split.sizes))
        sums, counts = self._losses(model, split, batch_tokens, observe)
        texts: list[str] = []
        if write:
            n_new = self.options.max_new_tokens
            written = generate(model, split.prompts(), split.task_ids, max_new_tokens=n_new)
            texts = [own[0].text.strip() for own in written]
        results: dict[str, dict[str, float]] = {}
        start = 0
        for name, size in split.sizes.items():
            part = slice(start, start + size)
            start += size
            values = self._written(model, split, part, texts[part], name) if write else {}
            loss = float(sums[part].sum() / counts[part].sum())
            results[name] = {**values, "loss": loss, "perplexity": math.exp(min(loss, 700.0)), "n": size}
        return summarize(results)

    def _written(
        self, model: Any, split: LmSplit, part: slice, texts: Sequence[str], task: str
    ) -> dict[str, float]:
        examples = split.examples[part]
        references = [e.outputs for e in examples]
        values = {"exact_match": best_match(references, texts)}
        if (own := self.labels[task]) is not None:
            targets = self._targets(model, own)
            prompts = split.prompts()[part]
            most = model.base.prompt_room(model.base.max_length, max(map(len, targets)))
            means = likelihoods(model, [p[-most:] for p in prompts], [targets] * len(examples), task)
            chosen = [own[int(mean.argmax())] for mean in means]
            expected = [c if c in e.outputs else e.output for e, c in zip(examples, chosen, strict=True)]
            values["accuracy"] = accuracy(expected, chosen)
        if find_spec("rouge_score") is not None:
            values |= rouge(references, texts)
        else:
            warnings.warn(
                "rouge1, rougeL: expected the package rouge-score, got none: left out "
                "(pip install 'polymoe[lm]')",
                stacklevel=2,
            )
        return values

    def _losses(
        self, model: Any, split: LmSplit, batch_tokens: int, observe: Observe
    ) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each example, summed over its target tokens, and how many it has; without noise."""
        training = model.training
        model.eval()
        sums, counts = np.zeros(len(split)), np.zeros(len(split))
        try:
            for indices in split.in_order(max_tokens=batch_tokens):
                batch = replace(self.batch(model, split, indices, 0, 0), routings=Routings())
                counts[indices] = np.diff(batch.targets.offsets)
                sums[indices] = self.loss(model, batch).per_example * counts[indices]
                if observe is not None:
                    observe(batch)
        finally:
            model.train(training)
        return sums, counts
