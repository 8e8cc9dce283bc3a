"""Caption metrics: BLEU and CIDEr as COCO's evaluation computes them (pycocoevalcap, no Java)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from turbovlm.errors import InputError, require
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.metrics.registry import MetricValues, register_metric
from turbovlm_workbench.metrics.words import Tokenizer, java_tokenizer, plain_tokenizer, tokenize

__all__ = ["CaptionScores", "java_tokenizer", "plain_tokenizer", "score_captions", "tokenize"]

BLEU = tuple(
    Measure(f"bleu{n}", f"BLEU-{n}", f"precision of up to {n} words in a row, corpus level")
    for n in (1, 2, 3, 4)
)
CIDER = Measure(
    "cider", "CIDEr", "agreement of weighted n-grams with the references, 0 to 10", False
)


@dataclass(frozen=True)
class CaptionScores:
    """BLEU and CIDEr of a set of captions.

    ``bleu`` (BLEU-1 to BLEU-4, 0 to 1) counts over the whole set: it is no mean over images.
    ``cider`` is the mean of ``ciders``, one an image. CIDEr is on pycocoevalcap's scale, 0 to 10;
    papers print both times 100.
    """

    bleu: tuple[float, float, float, float]
    cider: float
    ciders: tuple[float, ...]


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenizer: Tokenizer = plain_tokenizer,
) -> CaptionScores:
    """Score one predicted caption an image against the captions that people wrote.

    An empty prediction scores 0. CIDEr weighs a phrase by how few images of the set have it, so
    scores of different sets (a limited run, for one) cannot be compared, and with a single image
    every weight, and CIDEr, is 0.

    Args:
        predictions: one caption an image.
        references: one caption or more for every image, in the same order.
        tokenizer: splits captions into words; ``java_tokenizer()`` is COCO's own.

    Raises:
        InputError: for no image, as many predictions as there are not images, or an image whose
            references hold no word.
        MissingExtra: if pycocoevalcap is not installed.
    """
    bleu = require("pycocoevalcap.bleu.bleu", "eval").Bleu(4)
    cider = require("pycocoevalcap.cider.cider", "eval").Cider()
    if len(predictions) != len(references) or not predictions:
        raise InputError(
            f"{len(predictions)} predictions for {len(references)} images: "
            "give one prediction for every image, and one image or more"
        )
    counts = [len(captions) for captions in references]
    words = iter(tokenizer([*predictions, *(c for captions in references for c in captions)]))
    results = {i: [" ".join(next(words))] for i in range(len(predictions))}
    truths = {i: [" ".join(next(words)) for _ in range(count)] for i, count in enumerate(counts)}
    empty = [i for i, captions in truths.items() if not any(captions)]
    if empty:
        raise InputError(f"the references of image {empty[0]} hold no word: add a caption")
    scores, _ = bleu.compute_score(truths, results, verbose=0)
    mean, each = cider.compute_score(truths, results)
    first, second, third, fourth = map(float, scores)
    return CaptionScores((first, second, third, fourth), float(mean), tuple(map(float, each)))


@register_metric("captioning", *BLEU, CIDER)
def bleu_and_cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> MetricValues:
    """BLEU-1 to 4 and CIDEr, in COCO's own words where Java is installed."""
    java = shutil.which("java") is not None
    found = score_captions(
        predictions, references, tokenizer=java_tokenizer() if java else plain_tokenizer
    )
    return MetricValues(
        {CIDER.key: found.ciders},
        {**{m.key: b for m, b in zip(BLEU, found.bleu, strict=True)}, CIDER.key: found.cider},
        {"tokenizer": "COCO's own (Java)" if java else "turbovlm's, for want of Java"},
    )
