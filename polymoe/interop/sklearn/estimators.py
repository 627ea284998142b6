"""The classifier and the regressor: many tasks, one frozen base, one set of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_is_fitted,
    check_X_y,
    validate_data,
)

from polymoe.adapters import AdaptedModel
from polymoe.interop.sklearn.features import Features, Rows, Table
from polymoe.interop.sklearn.inputs import ONE_TASK, as_texts, check_outputs, split_column, task_names
from polymoe.interop.sklearn.learning import (
    adapter_config,
    base_name,
    make_tasks,
    shared_base,
    train,
    training_config,
)
from polymoe.training import Prediction, TrainingConfig

FEATURES = "features"
EPOCHS = 30
"""Over features, where an epoch costs next to nothing."""


class Estimator(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share; see :class:`PolymoeClassifier`."""

    objective: ClassVar[str]

    def __init__(
        self,
        base: str = "features",
        method: str = "poly",
        *,
        r: int | None = None,
        n_skills: int | None = None,
        n_splits: int | None = None,
        lora_alpha: float | None = None,
        target_modules: str | Sequence[str] | None = None,
        hidden_size: int = 128,
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
        self.method = method
        self.r = r
        self.n_skills = n_skills
        self.n_splits = n_splits
        self.lora_alpha = lora_alpha
        self.target_modules = target_modules
        self.hidden_size = hidden_size
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
    def model_(self) -> AdaptedModel:
        """The adapted model: to be saved (``model_.save_adapter``), looked at, exported."""
        check_is_fitted(self)
        model: AdaptedModel = self.learned_.model
        return model

    def _fit(self, X: Any, y: Any, task_ids: Any) -> Any:
        """Train on checked samples."""
        over_features = self.base == FEATURES
        if over_features:
            for name, usual in (("max_length", None), ("dtype", "float32")):
                if (value := getattr(self, name)) != usual:
                    raise ValueError(f"{name}: expected {usual!r} over features, got {value!r}")
        config = adapter_config(self)
        training = training_config(self, EPOCHS if over_features else TrainingConfig.epochs)
        samples, y, names = self._samples(X, y, task_ids, fitting=True)
        outputs = self._outputs(y, names)
        if over_features:
            base = Features.of(samples, self.hidden_size, training.seed)
            base.tokenizer = Table(samples)
            texts = [str(row) for row in range(len(samples))]
        else:
            base, texts = shared_base(base_name(self.base), self.dtype), samples
        tasks = make_tasks(texts, outputs, names, self.validation, training.seed)
        self.learned_, self.summary_ = train(base, tasks, self.objective, config, training, self.verbose)
        if over_features:
            base.tokenizer = None  # the samples are not kept
        self.tasks_ = list(tasks)
        return self

    def _outputs(self, y: np.ndarray, names: list[str]) -> Sequence[Any]:
        """What the objective is to learn of each sample."""
        raise NotImplementedError

    def _predict(self, X: Any, task_ids: Any) -> list[Prediction]:
        """What the objective says of each sample."""
        check_is_fitted(self)
        samples, _, names = self._samples(X, None, task_ids, fitting=False)
        learned = self.learned_
        tokens = Rows.of(samples) if self.base == FEATURES else learned.tokenizer.encode(samples)
        return learned.predict(tokens, names)

    def _samples(self, X: Any, y: Any, task_ids: Any, fitting: bool) -> tuple[Any, Any, list[str]]:
        """X as rows [n, D] float32 or n texts, y [n] when fitting, and the name of each sample's task."""
        rest, column = split_column(X, self.task_column)
        if column is not None and task_ids is not None:
            raise ValueError("task_ids: expected None (task_column is set), got some")
        ids = task_ids if column is None else column
        samples: Any
        if self.base == FEATURES:
            samples, y = self._features(X, rest, y, fitting)
        else:
            samples = as_texts(rest)
            y = check_outputs(y, len(samples)) if fitting else None
        if ids is None and not fitting and self.tasks_ != [ONE_TASK]:
            raise ValueError(f"task_ids: expected one of {self.tasks_} for each sample, got None")
        return samples, y, task_names(ONE_TASK if ids is None else ids, len(samples))

    def _features(self, X: Any, rest: Any, y: Any, fitting: bool) -> tuple[np.ndarray, Any]:
        """Rows [n, D] float32 and y; ``rest``: X without its column of tasks, or X itself."""
        checks: dict[str, Any] = {"dtype": np.float32}
        if fitting:
            checks |= {"ensure_min_samples": 2, "y_numeric": self.objective == "regress"}
        if rest is X:
            found = validate_data(self, X, y if fitting else "no_validation", reset=fitting, **checks)
        else:
            validate_data(self, X, reset=fitting, skip_check_array=True)  # names and number of columns
            found = check_X_y(rest, y, **checks) if fitting else check_array(rest, **checks)
        return found if fitting else (found, None)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.base != FEATURES:
            tags.input_tags.string = True
            tags.input_tags.two_d_array = False
        return tags


class PolymoeClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    """A classifier for one task or for many that share skills.

    Over features (2-D arrays of numbers; ``base="features"``) the frozen base is the standardised features
    beside a random hidden layer; a low-rank adapter in that layer is trained with a linear head for each
    task, as everywhere in polymoe: :class:`~polymoe.interop.sklearn.features.Features`. Over texts
    (``base="minilm"`` or another name that :func:`polymoe.load_base` takes) it is that model.

    Samples belong to tasks: ``fit(X, y, task_ids=names)``, ``predict(X, task_ids=names)``, by metadata
    routing inside of pipelines and searches (``set_fit_request(task_ids=True)``), or by a column of X
    (``task_column``). Without any there is one task. A task's labels are those it was fitted with, and a
    sample is given one of its own task's alone.

    Names and defaults are those of :class:`~polymoe.training.TrainingConfig` and of the adapter's options;
    what is None is as the method has it.

    Args:
        base: "features", or a frozen model of texts.
        method: a row of `polymoe methods`, one that does not come after another.
        r, n_skills, n_splits, lora_alpha, target_modules: sizes and places of the adapter.
        hidden_size: width of the random layer over features.
        epochs: None: 30 over features, 3 over texts. 0 trains nothing, so that all classes are alike.
        batch_size, learning_rate, router_learning_rate, head_learning_rate, weight_decay, max_length: of the
            trainer.
        validation: hold out a tenth of each task, and keep the step that is best there.
        early_stopping_patience: epochs without a new best after which training stops; needs ``validation``.
        adapter_options, training_options: further settings of the adapter and the trainer, by name.
        task_column: position, or name, of a column of X that says the task of each sample.
        random_state: of initial values, order and noise.
        dtype: of the frozen weights of a model of texts, "float32" or "bfloat16".
        verbose: show progress.

    Attributes:
        tasks_: names of the tasks. classes_: labels of all tasks. model_: the adapted model. summary_: what
        the trainer says of the run. learned_: what a pickle keeps. n_features_in_, feature_names_in_: as
        everywhere, over features, with the column of tasks.
    """

    objective = "classify"

    def fit(self, X: Any, y: Any, task_ids: Any = None) -> PolymoeClassifier:
        """Train. X: features [n, D], or n texts; y [n]: labels; ``task_ids`` [n]: the task of each sample.

        ValueError for shapes that do not fit, NaN, and a task with one class alone; TypeError for tasks that
        are neither names nor whole numbers.
        """
        self._fit(X, y, task_ids)
        return self

    def _outputs(self, y: np.ndarray, names: list[str]) -> Sequence[Any]:
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        owners = np.array(names)
        for name in dict.fromkeys(names):
            if len(found := np.unique(codes[owners == name])) < 2:
                only = self.classes_[found].tolist()
                raise ValueError(f"y: expected at least two classes in each task, got {only} in {name!r}")
        return [str(code) for code in codes.tolist()]

    def predict_proba(self, X: Any, task_ids: Any = None) -> np.ndarray:
        """[n, C] float64, the probability of each of ``classes_``; 0 of those that the task does not have."""
        predictions = self._predict(X, task_ids)
        found = np.zeros((len(predictions), len(self.classes_)))
        for row, prediction in zip(found, predictions, strict=True):
            row[[int(label) for label in prediction.scores]] = list(prediction.scores.values())
        return found

    def predict(self, X: Any, task_ids: Any = None) -> np.ndarray:
        """[n], the most probable class of each sample."""
        best = self.predict_proba(X, task_ids).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def score(self, X: Any, y: Any, task_ids: Any = None, sample_weight: Any = None) -> float:
        """Accuracy over all samples."""
        return float(accuracy_score(y, self.predict(X, task_ids), sample_weight=sample_weight))


class PolymoeRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
    """A regressor for one task or for many that share skills; parameters as :class:`PolymoeClassifier`.

    The numbers of each task are standardised by themselves.
    """

    objective = "regress"

    def fit(self, X: Any, y: Any, task_ids: Any = None) -> PolymoeRegressor:
        """Train. X: features [n, D], or n texts; y [n]: numbers; ``task_ids`` [n]: the task of each sample.

        Raises as :meth:`PolymoeClassifier.fit`; ValueError for a task whose numbers are all the same.
        """
        self._fit(X, y, task_ids)
        return self

    def _outputs(self, y: np.ndarray, names: list[str]) -> Sequence[Any]:
        numbers: list[float] = check_array(y, ensure_2d=False, dtype=np.float64).tolist()
        return numbers

    def predict(self, X: Any, task_ids: Any = None) -> np.ndarray:
        """[n] float64, the number for each sample."""
        return np.array([prediction.score for prediction in self._predict(X, task_ids)])

    def score(self, X: Any, y: Any, task_ids: Any = None, sample_weight: Any = None) -> float:
        """R2 over all samples."""
        return float(r2_score(y, self.predict(X, task_ids), sample_weight=sample_weight))
