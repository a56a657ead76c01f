"""The controls that read no backbone: majority label, and a linear model on word counts (scikit-learn)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline

Texts = Sequence[Sequence[str]]  # one row per example: its one or two text columns


@dataclass(frozen=True)
class Majority:
    """Predicts the most frequent training label; for regression the mean."""

    result_version = 1

    def fit(self, texts: Texts, labels: np.ndarray, regression: bool) -> "FittedControl":
        model = DummyRegressor() if regression else DummyClassifier(strategy="most_frequent")
        return FittedControl(Pipeline([("model", model)]), raw=False).fit(texts, labels)


@dataclass(frozen=True)
class BagOfWords:
    """Logistic regression (ridge for regression) on word counts, each text column with its own words.

    regularization: scikit-learn's C; ridge uses alpha = 1 / C.
    """

    result_version = 1
    regularization: float

    def fit(self, texts: Texts, labels: np.ndarray, regression: bool) -> "FittedControl":
        model = (
            Ridge(alpha=1 / self.regularization)
            if regression
            else LogisticRegression(C=self.regularization, max_iter=1000)
        )
        counts = CountVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False)
        return FittedControl(make_pipeline(counts, model), raw=True).fit(texts, labels)


class FittedControl:
    """A fitted scikit-learn pipeline over text rows."""

    def __init__(self, pipeline: Pipeline, raw: bool):
        self.pipeline, self.raw = pipeline, raw

    def fit(self, texts: Texts, labels: np.ndarray) -> "FittedControl":
        self.pipeline.fit(self._features(texts), labels)
        return self

    def predict(self, texts: Texts) -> np.ndarray:
        """(N,) predicted labels or scores."""
        return np.asarray(self.pipeline.predict(self._features(texts)))

    def _features(self, texts: Texts) -> list[str] | np.ndarray:
        if not self.raw:
            return np.zeros((len(texts), 1))
        # The column index is part of the word, so that "a in text 1" and "a in text 2" are two features.
        return [" ".join(f"{i}:{w}" for i, t in enumerate(row) for w in t.lower().split()) for row in texts]
