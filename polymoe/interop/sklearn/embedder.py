"""Embeddings of texts of many tasks: a transformer for pipelines, with the calls of sentence embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import NotFittedError

from polymoe import functional as F
from polymoe.adapters import AdaptedModel
from polymoe.batch import Batch
from polymoe.data import shortest_first
from polymoe.interop.peft import load_adapter
from polymoe.interop.peft_folder import CONFIG, open_folder
from polymoe.interop.sklearn.inputs import ONE_TASK, as_texts, check_outputs, split_column, task_names
from polymoe.interop.sklearn.learning import (
    Learned,
    adapter_config,
    base_name,
    make_tasks,
    shared_base,
    train,
    training_config,
)
from polymoe.tape import data_of
from polymoe.training import TrainingConfig, load_objective, load_run
from polymoe.training.objectives.base import SETTINGS

BATCH_TOKENS = 8192
"""Tokens of a batch at most, however many texts that is."""


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Texts to vectors [n, D], each by its own task; texts of all tasks may be mixed in one call.

    What it embeds with:

    - ``adapter``, the folder of a run (of `polymoe train`) or of an adapter. Nothing is trained, and no call
      of ``fit`` is needed;
    - with ``method=None``, the frozen base alone; likewise;
    - else what ``fit(X, y, task_ids=...)`` trains: y are labels, or texts that the texts of X should lie
      close to (``objective="match"``), or labels of a linear head ("classify"), or numbers ("regress").

    Args:
        base: the frozen model; None: "minilm", or that of the ``adapter``.
        adapter: see above.
        objective: see above.

    The other parameters, ``task_column`` and metadata routing are as
    :class:`~polymoe.interop.sklearn.PolymoeClassifier` has them. Attributes: ``learned_``, ``model_``,
    ``summary_`` of what ``fit`` has trained.
    """

    def __init__(
        self,
        base: str | None = None,
        adapter: str | os.PathLike[str] | None = None,
        method: str | None = "poly",
        objective: Literal["match", "classify", "regress"] = "match",
        *,
        r: int | None = None,
        n_skills: int | None = None,
        n_splits: int | None = None,
        lora_alpha: float | None = None,
        target_modules: str | Sequence[str] | None = None,
        epochs: int | None = None,
        batch_size: int | None = TrainingConfig.batch_size,
        learning_rate: float | None = TrainingConfig.learning_rate,
        router_learning_rate: float = TrainingConfig.router_learning_rate,
        head_learning_rate: float = TrainingConfig.head_learning_rate,
        weight_decay: float = TrainingConfig.weight_decay,
        max_length: int | None = TrainingConfig.max_length,
        validation: bool = False,
        early_stopping_patience: int | None = TrainingConfig.early_stopping_patience,
        adapter_options: Mapping[str, Any] | None = None,
        training_options: Mapping[str, Any] | None = None,
        task_column: int | str | None = None,
        random_state: Any = None,
        dtype: str = "float32",
        verbose: bool = False,
    ) -> None:
        self.base = base
        self.adapter = adapter
        self.method = method
        self.objective = objective
        self.r = r
        self.n_skills = n_skills
        self.n_splits = n_splits
        self.lora_alpha = lora_alpha
        self.target_modules = target_modules
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.router_learning_rate = router_learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.max_length = max_length
        self.validation = validation
        self.early_stopping_patience = early_stopping_patience
        self.adapter_options = adapter_options
        self.training_options = training_options
        self.task_column = task_column
        self.random_state = random_state
        self.dtype = dtype
        self.verbose = verbose

    @property
    def model_(self) -> Any:
        """The adapted model, or the base where nothing adapts it."""
        return self._learned().model

    def fit(self, X: Any, y: Any = None, task_ids: Any = None) -> Embedder:
        """Train, or load what is given (y is then passed over, as in the middle of a pipeline).

        X: n texts; y [n]; ``task_ids`` [n]: the task of each text. ValueError for shapes that do not fit, and
        without y where it is needed; TypeError for anything but texts.
        """
        if self._is_given:
            self.learned_ = self._load()
            return self
        texts, ids = self._texts(X, task_ids)
        outputs = check_outputs(y, len(texts)).tolist()
        if self.objective != "regress":
            outputs = [str(output) for output in outputs]
        names = task_names(ONE_TASK if ids is None else ids, len(texts))
        config, training = adapter_config(self), training_config(self, TrainingConfig.epochs)
        tasks = make_tasks(texts, outputs, names, self.validation, training.seed)
        base = shared_base("minilm" if self.base is None else base_name(self.base), self.dtype)
        self.learned_, self.summary_ = train(base, tasks, self.objective, config, training, self.verbose)
        return self

    def transform(self, X: Any, task_ids: Any = None) -> np.ndarray:
        """[n, D] float32, the vector of each text. KeyError for an unknown task; ValueError without tasks
        where the adapter goes by them."""
        texts, ids = self._texts(X, task_ids)
        return self._embed(texts, ids, None, False)

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        *,
        convert_to_numpy: bool = True,
        task: str | Sequence[str] | None = None,
        normalize_embeddings: bool = False,
    ) -> np.ndarray:
        """[n, D] float32 of n texts, in their order, or [D] of one; with the names of sentence-transformers.

        ``task``: of all texts, or of each. ``prompt``, or the base's prompt called ``prompt_name``, is put
        before each text. Raises as :meth:`transform`; KeyError for an unknown prompt, ValueError for anything
        but NumPy.
        """
        if not convert_to_numpy:
            raise ValueError("convert_to_numpy: expected True (there is nothing else), got False")
        if one := isinstance(sentences, str):
            sentences = [sentences]
        if prompt_name is not None:
            known = self._base.prompts
            if prompt_name not in known:
                raise KeyError(f"prompt_name: expected one of {sorted(known)}, got {prompt_name!r}")
            prompt = known[prompt_name] if prompt is None else prompt
        texts = as_texts(sentences) if len(sentences) else []
        found = self._embed([(prompt or "") + text for text in texts], task, batch_size, show_progress_bar)
        if normalize_embeddings:
            found = F.l2_normalize(found)[0]
        return found[0] if one else found

    def get_sentence_embedding_dimension(self) -> int:
        """D."""
        return int(self._base.hidden_size)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter and its objective into a folder, which ``Embedder(adapter=path)`` takes, PEFT too
        where it has the method. ValueError where there is no adapter."""
        learned = self._learned()
        if not isinstance(learned.model, AdaptedModel):
            raise ValueError("save: expected an adapter, got the base alone")
        learned.model.save_adapter(path)
        if learned.objective is not None:
            learned.objective.save(Path(path))

    def _embed(self, texts: list[str], ids: Any, batch_size: int | None, progress: bool) -> np.ndarray:
        """In batches of similar length."""
        learned = self._learned()
        model, tokens = learned.model, learned.tokenizer.encode(texts)
        if ids is None and learned.tasks == (ONE_TASK,):
            ids = ONE_TASK
        rows = None
        if isinstance(model, AdaptedModel):
            rows = model.task_ids(None if ids is None else task_names(ids, len(texts)), len(texts))
        found = np.empty((len(texts), self._base.hidden_size), np.float32)
        batches: Iterable[np.ndarray] = shortest_first(
            tokens.lengths, max_tokens=BATCH_TOKENS, batch_size=batch_size
        )
        if progress:
            from tqdm.auto import tqdm  # warns in a notebook without widgets, where no bar may be wanted

            batches = tqdm(batches, desc="Batches")
        for indices in batches:
            token_ids, cu_seqlens = tokens.take(indices)
            batch = Batch(cu_seqlens, token_ids, None if rows is None else rows[indices])
            found[indices] = data_of(model.embed(batch))
        return found

    def _texts(self, X: Any, task_ids: Any) -> tuple[list[str], Any]:
        rest, column = split_column(X, self.task_column)
        if column is not None and task_ids is not None:
            raise ValueError("task_ids: expected None (task_column is set), got some")
        return as_texts(rest), task_ids if column is None else column

    @property
    def _is_given(self) -> bool:
        return self.adapter is not None or self.method is None

    @property
    def _base(self) -> Any:
        model = self._learned().model
        return model.base if isinstance(model, AdaptedModel) else model

    def _learned(self) -> Learned:
        """What was fitted, or what is given; it is loaded once."""
        if not hasattr(self, "learned_"):
            if not self._is_given:
                raise NotFittedError(
                    "Embedder: expected a call of fit, or an adapter, or method=None for the base alone"
                )
            key = (self.base, self.adapter, self.dtype)
            if getattr(self, "_loaded", (None, None))[0] != key:
                self._loaded = (key, self._load())
            return self._loaded[1]
        learned: Learned = self.learned_
        return learned

    def _load(self) -> Learned:
        name = None if self.base is None else base_name(self.base)
        if self.adapter is None:
            return Learned(shared_base(name or "minilm", self.dtype))
        path = Path(self.adapter)
        if not (path / CONFIG).is_file():
            run = load_run(path, name)
            return Learned(run.model, run.objective)
        name = name or open_folder(path).base["name"]
        if name is None:
            raise ValueError(f"base: expected the name of the base ({path} does not say it), got None")
        model = load_adapter(shared_base(name, self.dtype), path)
        return Learned(model, load_objective(model, path) if (path / SETTINGS).is_file() else None)

    def __sklearn_is_fitted__(self) -> bool:
        return self._is_given or hasattr(self, "learned_")

    @property
    def _n_features_out(self) -> int:
        return self.get_sentence_embedding_dimension()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.requires_fit = not self._is_given
        return tags
