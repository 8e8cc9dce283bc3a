"""Accuracy of short answers: official VQA accuracy (VQAv2, OK-VQA, VizWiz), exact match (GQA).

The rules and tables are those of the VQA challenge's public evaluation (version 2), oddities
included, as every published number went through them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from turbovlm.errors import InputError
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.metrics.registry import MetricValues, register_metric

ACCURACY = Measure(
    "accuracy",
    "VQA accuracy",
    "agreement with the annotators, three of whom make an answer right, each left out in turn",
)
EXACT = Measure("exact", "exact match", "share of questions whose one answer was given")

_MARKS = ';/[]"{}()=+\\_-><@`,?!'  # neither the apostrophe nor the colon
_NUMBER_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = {"a", "an", "the"}
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS.split())}
# words that are mended when one of their apostrophes is missing
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
    you'd you'd've you'll you're you've
"""
_MENDED = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the other way round in the official table


def normalise(answer: str) -> str:
    """A prediction as the official evaluation compares it.

    Punctuation goes (see ``strip_punctuation``), words become lower case, none and zero to ten
    become digits, articles go, and apostrophes that are missing from contractions return.
    """
    words = strip_punctuation(_one_line(answer)).lower().split()
    numbered = (_NUMBERS.get(word, word) for word in words)
    return " ".join(_MENDED.get(word, word) for word in numbered if word not in _ARTICLES)


def strip_punctuation(text: str) -> str:
    """Remove punctuation, the colon and the apostrophe excepted.

    A mark becomes nothing if it stands next to a space anywhere in the text, or if the text holds
    a number such as 1,000; else it becomes a space. A period stays before a digit.
    """
    joined = _NUMBER_COMMA.search(text) is not None
    result = text
    for mark in _MARKS:
        spaced = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if joined or spaced else " ")
    return _PERIOD.sub("", result)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy of one prediction, 0 to 1.

    With each annotator left out in turn, the prediction scores min(matches among the others / 3,
    1); the result is the mean over the annotators. The prediction is always normalised. The
    answers are expected as the data sets write them, with digits and without articles: of them
    only the punctuation goes, and only if they are not all the same. Lower case is the one thing
    added here (the data sets' answers have it).

    Args:
        prediction: the answer of the model.
        answers: one answer an annotator, ten of them in the official data sets.

    Raises:
        InputError: for fewer than four answers, when not even a perfect prediction could score 1.
    """
    if len(answers) < 4:
        raise InputError(
            f"VQA accuracy compares with ten annotators' answers and needs at least 4, not "
            f"{len(answers)}: give more answers, or use exact match"
        )
    truths = [_one_line(answer) for answer in answers]
    if len(set(truths)) > 1:
        truths = [strip_punctuation(truth) for truth in truths]
    right = normalise(prediction)
    matches = [truth.lower() == right for truth in truths]
    # leaving out one that matches leaves one match less
    return sum(min((sum(matches) - match) / 3, 1.0) for match in matches) / len(matches)


def exact_match(prediction: str, answer: str) -> float:
    """1 if prediction and answer are the same but for case and outer spaces, else 0 (GQA)."""
    return float(prediction.strip().lower() == answer.strip().lower())


@register_metric("vqa", ACCURACY, EXACT)
def score_answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> MetricValues:
    """VQA accuracy where any question has several answers (VQAv2, VizWiz), else exact match."""
    pairs = list(zip(predictions, references, strict=True))
    if any(len(answers) > 1 for answers in references):
        return MetricValues(
            {ACCURACY.key: [vqa_accuracy(said, answers) for said, answers in pairs]}
        )
    return MetricValues({EXACT.key: [exact_match(said, answers[0]) for said, answers in pairs]})


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
