"""scikit-learn's way of working (extra ``sklearn``): a classifier, a regressor, and embeddings of texts.

    model = PolymoeClassifier(base="minilm", method="mhr", random_state=0)
    model.fit(texts, labels, task_ids=tasks).predict(new_texts, task_ids="topic")
    Embedder(adapter="runs/mine").encode(["What a film!"], task="sentiment")

Reading order: estimators.py, embedder.py; learning.py (what is left of a training), features.py (the base of
plain numbers), inputs.py (checks).
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("sklearn: expected scikit-learn (pip install 'polymoe[sklearn]'), got none") from error

from polymoe.interop.sklearn.embedder import Embedder
from polymoe.interop.sklearn.estimators import PolymoeClassifier, PolymoeRegressor

__all__ = ["Embedder", "PolymoeClassifier", "PolymoeRegressor"]
