"""The five scores of the E2E challenge, as github.com/tuetschek/e2e-metrics (1b9c4d8) computes them with `-p`, which is
what Li & Liang and Hu et al. ran.

    bleu     4-grams, 13a tokens, lower case, closest reference length, no smoothing        0 … 1   sacrebleu counts
    nist     5-grams weighted by their information in the references                        0 …     written out
    meteor   METEOR 1.5, aggregated over the set                                            0 … 1   Java program
    rouge_l  mean F (beta 1.2) of the longest common subsequence                            0 … 1   pycocoevalcap
    cider    CIDEr-D, document frequencies of these very references                         0 … 10  pycocoevalcap

Predictions: N texts. References: for each of them one or more texts. A score that needs Java is None without it.
"""

import atexit
import functools
import math
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from ..config.metrics import metrics_of
from .ptb import JavaMissing, coco_folder, java, ptb_tokenize

References = Sequence[Sequence[str]]
METEOR_JAR = "meteor/meteor-1.5.jar"  # of pycocoevalcap
TEXT_METRICS = metrics_of("e2e")


def score_texts(
    predictions: Sequence[str], references: References, names: Sequence[str] = TEXT_METRICS
) -> dict[str, float | None]:
    """The named scores. None where Java is missing. Raises ValueError for input that has no score."""
    check_texts(predictions, references)
    if unknown := [name for name in names if name not in TEXT_METRICS]:
        raise ValueError(f"no metric {unknown[0]!r}; expected names among {', '.join(TEXT_METRICS)}")
    found: dict[str, float | None] = {}
    if {"bleu", "nist"} & {*names}:
        found |= {"bleu": bleu(predictions, references), "nist": nist(predictions, references)}
    if {"meteor", "rouge_l", "cider"} & {*names}:
        found |= _on_ptb_tokens(predictions, references, names)
    return {name: found[name] for name in names}


def check_texts(predictions: Sequence[str], references: References) -> None:
    """Raises ValueError for no texts, sets of different size, or an input without a reference."""
    if not len(predictions):
        raise ValueError("no predictions; expected at least one")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} sets of references; expected as many")
    if isinstance(references[0], str):
        raise ValueError("references are one text each; expected a list of texts for every prediction")
    for number, texts in enumerate(references):
        if not any(text.strip() for text in texts):
            raise ValueError(f"prediction {number} (from 0) has no reference; expected at least one text")


def bleu(predictions: Sequence[str], references: References) -> float:
    """Corpus BLEU of the Python backend. sacrebleu counts matches, n-grams and lengths.

    The backend subtracts from the number of n-grams for an output shorter than n, and takes an empty output for one
    token: done here, too. Without such outputs this is sacrebleu's score / 100.
    """
    most = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    counted = BLEU(lowercase=True, tokenize="13a", force=True, smooth_method="none").corpus_score(
        [*predictions],
        streams,  # type: ignore[arg-type]  # None marks an absent reference
    )
    totals = list(counted.totals)
    for length in map(len, map(_tokens_13a, predictions)):
        totals[0] += not length
        for n in range(1, 5):
            totals[n - 1] += min(0, max(1, length) - n + 1)
    outputs, expected = totals[0], counted.ref_len
    precisions = [max(hits, 1e-15) / max(n, 1e-9) for hits, n in zip(counted.counts, totals, strict=True)]
    brevity = 1.0 if outputs > expected else math.exp(1 - expected / outputs)
    return brevity * math.exp(sum(map(math.log, precisions)) / 4)


def nist(predictions: Sequence[str], references: References) -> float:
    """Corpus NIST of the Python backend.

    information(w1..wn) = log2(count(w1..wn-1) / count(w1..wn)) over all references, repetitions included; for n = 1 the
    numerator is their total length. Score: sum over n of information x clipped matches / n-grams of the outputs, times
    exp(-b ln^2 min(1, outputs / mean reference length)) with b = ln 2 / ln^2 1.5.
    """
    tokenized = [[_tokens_13a(text) or [""] for text in texts] for texts in references]
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(6)]
    for tokens in (tokens for texts in tokenized for tokens in texts):
        counts[0][()] += len(tokens)
        for n in range(1, 6):
            counts[n].update(_ngrams(tokens, n))
    information, totals, outputs, expected = [0.0] * 5, [0] * 5, 0, 0.0
    for text, texts in zip(predictions, tokenized, strict=True):
        tokens = _tokens_13a(text) or [""]
        outputs += len(tokens)
        expected += sum(map(len, texts)) / len(texts)
        for n in range(1, 6):
            totals[n - 1] += len(tokens) - n + 1  # negative for a short output, as in the backend
            most: Counter[tuple[str, ...]] = Counter()
            for reference in texts:
                most |= Counter(_ngrams(reference, n))
            for ngram, hits in (Counter(_ngrams(tokens, n)) & most).items():
                information[n - 1] += hits * math.log2(counts[n - 1][ngram[:-1]] / counts[n][ngram])
    ratio = min(1.0, outputs / expected)
    penalty = math.exp(-math.log(2) / math.log(1.5) ** 2 * math.log(ratio) ** 2)
    return penalty * sum(gained / max(n, 1e-9) for gained, n in zip(information, totals, strict=True))


def _tokens_13a(text: str) -> list[str]:
    return _cached_13a(text.lower()).split()


@functools.lru_cache(maxsize=65536)  # the same references at every evaluation
def _cached_13a(text: str) -> str:
    return str(Tokenizer13a()(text))


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def _on_ptb_tokens(predictions: Sequence[str], references: References, names: Sequence[str]) -> dict[str, float | None]:
    """METEOR, ROUGE-L and CIDEr, all on the same tokens."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    none: dict[str, float | None] = dict.fromkeys(("meteor", "rouge_l", "cider"))
    try:
        flat = iter(_ptb_of_references(tuple(text for texts in references for text in texts)))
        tokens = ptb_tokenize(predictions)
    except JavaMissing:
        return none
    gold = {i: [next(flat) for _ in texts] for i, texts in enumerate(references)}
    made = {i: [text] for i, text in enumerate(tokens)}
    found = none
    if "rouge_l" in names:
        found["rouge_l"] = float(Rouge().compute_score(gold, made)[0])
    if "cider" in names:
        found["cider"] = float(Cider().compute_score(gold, made)[0])
    if "meteor" in names:
        try:
            found["meteor"] = _meteor().score(tokens, list(gold.values()))
        except JavaMissing:
            found["meteor"] = None
    return found


@functools.lru_cache(maxsize=8)
def _ptb_of_references(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(ptb_tokenize(texts))


class _Meteor:
    """The METEOR 1.5 program, kept running: its start takes longer than its work. One caller at a time."""

    def __init__(self) -> None:
        jar = coco_folder() / METEOR_JAR
        words = [java(), "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            words, cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )  # fmt: skip
        atexit.register(self.close)

    def score(self, predictions: Sequence[str], references: References) -> float:
        """Of tokenized texts, from the statistics of the whole set."""
        with self.lock:
            statistics = [
                self._ask(" ||| ".join(["SCORE", *texts, text.replace("|||", "").replace("  ", " ")]))
                for text, texts in zip(predictions, references, strict=True)
            ]
            lines = [self._ask(" ||| ".join(["EVAL", *statistics]))]
            lines += [self._read() for _ in statistics]
            return float(lines[-1])

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            _meteor.cache_clear()
            raise RuntimeError(f"the METEOR program ended with status {self.process.wait()}; it needs 2 GB of memory")
        return line.strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@functools.cache
def _meteor() -> _Meteor:
    return _Meteor()
