"""ROUGE of summaries by Google's rouge_score, as Li & Liang ran it: F of stemmed words, mean over the examples.

    rouge1, rouge2   words and pairs of words in common                       0 … 1
    rougeL           longest common subsequence of words                      0 … 1

Not `rouge_l` of e2e.py, the E2E challenge's (other tokens, no stems, another F). transformers 3.2, which the
paper's code calls, takes the median of 1,000 resampled means of every batch and averages those over the batches; the
plain mean over the examples has no random part and no weight by batch.
"""

import sys
from collections.abc import Sequence

import absl.logging
from rouge_score.rouge_scorer import RougeScorer

from ..config.metrics import metrics_of
from .e2e import References, check_texts

# rouge_score logs through absl, whose handler keeps the stderr that it finds when it is imported, and closes it when
# logging is configured anew: not that of a test or a notebook, then.
absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)

ROUGE = metrics_of("rouge")


def rouge(predictions: Sequence[str], references: References, names: Sequence[str] = ROUGE) -> dict[str, float]:
    """The named scores; of several references each example takes its best. Raises ValueError for what has no score."""
    check_texts(predictions, references)
    scorer = RougeScorer([*names], use_stemmer=True)
    each = [scorer.score_multi([*texts], text) for text, texts in zip(predictions, references, strict=True)]
    return {name: sum(scores[name].fmeasure for scores in each) / len(each) for name in names}
