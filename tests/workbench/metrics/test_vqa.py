"""VQA accuracy and exact match against cases worked by hand from the official rules."""

from __future__ import annotations

import pytest

from turbovlm.errors import InputError
from turbovlm_workbench.metrics.vqa import exact_match, normalise, strip_punctuation, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("  A red\n\tBall. ", "red ball"),
        ("The an a", ""),
        ("two dogs and none", "2 dogs and 0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # only one apostrophe is put back
        ("yall'd've", "y'all'd've"),
        ("oclock", "o'clock"),
        ("", ""),
    ],
)
def test_normalised_predictions(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t-shirt", "t shirt"),  # no space next to the mark: it becomes one
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),  # a space next to it: it goes
        ("red ,blue", "red blue"),
        ("a-b - c", "ab  c"),  # the same mark spaced once: it goes everywhere
        ("1,000", "1000"),  # a number with a comma: every mark goes
        ("1,000-ton", "1000ton"),
        ("$1.50.", "$1.50"),  # a period stays before a digit only
        ("u.s.", "us"),
        ("5.", "5"),
        (".5", ".5"),
        ("3:30", "3:30"),  # neither colon nor apostrophe is touched
        ("man's", "man's"),
        ('"stop"!', " stop  "),
        ("{a}[b](c)<d>", " a  b  c  d "),
    ],
)
def test_punctuation(text: str, expected: str) -> None:
    assert strip_punctuation(text) == expected


def answers(**counts: int) -> list[str]:
    return [answer for answer, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "accuracy"),
    [
        (0, 0.0),
        (1, 9 / 10 * 1 / 3),  # left out once in ten
        (2, 2 / 10 * 1 / 3 + 8 / 10 * 2 / 3),
        (3, 3 / 10 * 2 / 3 + 7 / 10),
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_each_annotator_is_left_out_once(count: int, accuracy: float) -> None:
    assert vqa_accuracy("Dog", answers(dog=count, cat=10 - count)) == pytest.approx(accuracy)


def test_answers_that_differ_lose_their_punctuation_only() -> None:
    assert vqa_accuracy("T-shirt", ["t-shirt"] * 9 + ["shirt"]) == 1
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 10) == 0  # all the same: left as they are
    assert vqa_accuracy("shirt", ["shirt"] * 10) == 1
    assert vqa_accuracy("two", ["two"] * 9 + ["2"]) == pytest.approx(9 / 10 * 1 / 3)
    assert vqa_accuracy("the dog", ["the dog"] * 9 + ["cat"]) == 0


def test_case_and_outer_spaces_of_answers_do_not_count() -> None:
    assert vqa_accuracy("yes", ["Yes\n"] * 4 + ["no"] * 6) == 1


def test_too_few_annotators() -> None:
    assert vqa_accuracy("yes", ["yes"] * 4) == 1
    with pytest.raises(InputError, match=r"at least 4, not 3: give more answers, or use exact"):
        vqa_accuracy("yes", ["yes"] * 3)


def test_exact_match() -> None:
    assert exact_match(" Left ", "left") == 1
    assert exact_match("the left", "left") == 0
