"""``lm``: the output is written, token by token, after a prompt that holds the input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from polymoe import tape
from polymoe.batch import Batch, Routings
from polymoe.data import EncodedSplit, TaskData, has_labels, labels
from polymoe.data.chat import ChatTemplate
from polymoe.data.prompts import Context, Template
from polymoe.models.generate import Generation, generate
from polymoe.models.likelihood import frozen_head, likelihoods
from polymoe.tape import current_tape
from polymoe.training.metrics import Evaluation, accuracy, best_match, rouge_where_installed, summarize
from polymoe.training.objectives.base import Loss, Objective, Prediction
from polymoe.training.objectives.embedding import BATCH_TOKENS, Observe
from polymoe.training.objectives.lm_options import LmOptions
from polymoe.training.objectives.lm_texts import LmSplit, LmTexts


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

    def _texts(self, model: Any) -> LmTexts:
        o, tokenizer, chat = self.options, self.tokenizer(model), None
        if o.template == "chat":
            chat = ChatTemplate.of(tokenizer, model.base.eos_token_ids)
        template = Template(o.template, o.separator, o.demonstrations, chat)
        return LmTexts(model.base, tokenizer, template, self.contexts)

    # ---- what it knows of its tasks

    def _prepare(self, model: Any, tasks: Mapping[str, TaskData]) -> None:
        frozen_head(model)
        self.contexts, self.labels = {}, {}
        for task in tasks.values():
            self._add_task(model, task)

    def _add_task(self, model: Any, task: TaskData) -> None:
        context = self._texts(model).template.context(task)
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

    # ---- loss

    def encode(self, model: Any, tasks: Mapping[str, TaskData], split: str) -> LmSplit:
        """Prompts and targets of one split."""
        return self._texts(model).encode(tasks, split, model.tasks)

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
        own, base = self._texts(model), model.base
        room = min(base.prompt_room(own.tokenizer.max_length, 1), base.prompt_room(base.max_length, n_new))
        encoded = own.prompts(texts, names, [room] * len(texts))
        written = generate(model, [p.ids for p in encoded], names, **options)
        return [
            [replace(text, text=text.text.strip(), cut=text.cut + p.cut) for text in several]
            for several, p in zip(written, encoded, strict=True)
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
        if free := [i for i, choices in enumerate(chosen) if not choices]:
            written = self.write(model, [texts[i] for i in free], [names[i] for i in free])
            for i, (text,) in zip(free, written, strict=True):
                result[i] = Prediction(text.text, math.exp(text.score), {})
        if ranked := [i for i, choices in enumerate(chosen) if choices]:
            own, ranked_names = self._texts(model), [names[i] for i in ranked]
            targets = [own.targets(chosen[i]) for i in ranked]
            rooms = [
                model.base.prompt_room(own.tokenizer.max_length, max(map(len, each))) for each in targets
            ]
            prompts = own.prompts([texts[i] for i in ranked], ranked_names, rooms)
            scores = likelihoods(model, [p.ids for p in prompts], targets, ranked_names)
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
        self, model: Any, split: EncodedSplit, batch_tokens: int = BATCH_TOKENS, observe: Observe = None
    ) -> Evaluation:
        """Metrics of what is written, of the likeliest labels, and of the loss, task by task. ROUGE where the
        package rouge-score is installed, with a warning where it is not. ValueError without examples."""
        return self._evaluate_split(model, split, batch_tokens, observe)

    def _evaluate_split(
        self,
        model: Any,
        split: EncodedSplit,
        batch_tokens: int = BATCH_TOKENS,
        observe: Observe = None,
        write: bool = True,
    ) -> Evaluation:
        assert isinstance(split, LmSplit)
        self._check_split(split)
        sums, counts = self._losses(model, split, batch_tokens, observe)
        texts: list[str] = []
        if write:
            n_new = self.options.max_new_tokens
            written = generate(model, split.prompts(), split.task_ids, max_new_tokens=n_new)
            texts = [own[0].text.strip() for own in written]
        results: dict[str, dict[str, float]] = {}
        for name, part in split.parts():
            values = self._written(model, split, part, texts[part], name) if write else {}
            loss = float(sums[part].sum() / counts[part].sum())
            results[name] = {
                **values,
                "loss": loss,
                "perplexity": math.exp(min(loss, 700.0)),
                "n": split.sizes[name],
            }
        return summarize(results)

    def _written(
        self, model: Any, split: LmSplit, part: slice, texts: Sequence[str], task: str
    ) -> dict[str, float]:
        examples = split.examples[part]
        references = [e.outputs for e in examples]
        values = {"exact_match": best_match(references, texts)}
        if (own := self.labels[task]) is not None:
            targets = self._texts(model).targets(own)
            prompts = split.prompts()[part]
            most = model.base.prompt_room(model.base.max_length, max(map(len, targets)))
            means = likelihoods(model, [p[-most:] for p in prompts], [targets] * len(examples), task)
            chosen = [own[int(mean.argmax())] for mean in means]
            expected = [c if c in e.outputs else e.output for e, c in zip(examples, chosen, strict=True)]
            values["accuracy"] = accuracy(expected, chosen)
        return values | rouge_where_installed(references, texts)

    def _losses(
        self, model: Any, split: LmSplit, batch_tokens: int, observe: Observe
    ) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each example, summed over its target tokens, and how many it has; without noise."""
        sums, counts = np.zeros(len(split)), np.zeros(len(split))
        with model.without_noise():
            for indices in split.in_order(max_tokens=batch_tokens):
                batch = replace(self.batch(model, split, indices, 0, 0), routings=Routings())
                counts[indices] = np.diff(batch.targets.offsets)
                sums[indices] = self.loss(model, batch).per_example * counts[indices]
                if observe is not None:
                    observe(batch)
        return sums, counts
