"""Our metrics as modules of the library `evaluate`, for code that expects those. They need no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import evaluate

from ..config.metrics import metric, metrics_of
from .e2e import score_texts
from .labels import METRICS, score
from .rouge import rouge
from .squad import score_answers

_OF_TEXTS: dict[str, Callable[..., Mapping[str, float | None]]] = {
    "e2e": score_texts,
    "rouge": rouge,
    "squad": score_answers,
}


def as_evaluate(*names: str) -> evaluate.Metric:
    """An `evaluate.Metric` of the named metrics, all of labels or all of texts of one kind.

    compute(predictions=..., references=...) gives {name: score}: a number per example each or, of texts, one text
    against a list of texts. Nothing is written unless `keep_in_memory=False`.
    """
    known = (*METRICS, *metrics_of(*_OF_TEXTS))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no metric {unknown[0]!r} of predictions and references; expected one of {', '.join(known)}")
    kinds = {metric(name).of for name in names}
    if len(kinds) != 1:
        raise ValueError(f"as_evaluate{names} compares {', '.join(sorted(kinds)) or 'nothing'}; expected one kind")
    return _Module(names)


class _Module(evaluate.Metric):
    def __init__(self, names: Sequence[str], keep_in_memory: bool = True, **kwargs: Any):
        self.names, self.of = tuple(names), metric(names[0]).of  # before _info, which the base class calls
        super().__init__(keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        number = datasets.Value("float64" if self.of == "values" else "int64")
        texts = {"predictions": text, "references": datasets.List(text)}
        return evaluate.MetricInfo(
            description=", ".join(self.names),
            citation="",
            inputs_description="predictions and references, one per example",
            features=datasets.Features(
                texts if self.of in _OF_TEXTS else {"predictions": number, "references": number}
            ),
        )

    def _build_data_dir(self) -> str:
        # The base class makes a folder in the user's cache before it knows whether it will write there.
        return str(self._data_dir_root) if self.keep_in_memory else str(super()._build_data_dir())

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> Mapping[str, float | None]:
        if self.of in _OF_TEXTS:
            return _OF_TEXTS[self.of](predictions, references, self.names)
        return {name: score(name, predictions, references) for name in self.names}
