"""Statements are true of the pairs that say so, and as often true as false."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from tests.lab.reading import meant
from turbovlm.errors import InputError
from turbovlm_lab.heads import head_vocabulary
from turbovlm_lab.pairs import StatementGroup, group
from turbovlm_lab.scenes import Object, layout, seed_of_split

POOL = [layout(seed_of_split("test", index)) for index in range(64)]
GROUPS = [group(POOL, seed) for seed in range(300)]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

Objects = Sequence[Object]


def true(statement: str, left: Objects, right: Objects) -> bool:
    """Whether a statement holds, from its words and the objects alone."""
    words = statement.split()
    sides = {"left": left, "right": right}
    if statement.endswith(" in total"):
        phrase = " ".join(words[3:-2])
        return len(meant(phrase, [*left, *right])) == NUMBERS.index(words[2]) + 1
    if " image contains exactly " in statement:
        return len(meant(" ".join(words[6:]), sides[words[1]])) == NUMBERS.index(words[5]) + 1
    if " image has more " in statement:
        phrase = statement.split(" has more ")[1].split(" than ")[0]
        other = sides[words[-2]]
        assert words[-2] != words[1]
        return len(meant(phrase, sides[words[1]])) > len(meant(phrase, other))
    if statement.startswith("both images have the same number of "):
        phrase = statement.removeprefix("both images have the same number of ")
        return len(meant(phrase, left)) == len(meant(phrase, right))
    start, _, phrase = statement.partition(" contain")
    found = sum(bool(meant(phrase.removeprefix("s").strip(), o)) for o in (left, right))
    return found == {"both images": 2, "only one image": 1, "neither image": 0}[start]


def judged(one: StatementGroup, pool: Sequence[Objects]) -> list[bool]:
    return [true(one.statement, pool[pair.left], pool[pair.right]) for pair in one.pairs]


def test_labels_are_right() -> None:
    wrong = [one for one in GROUPS if judged(one, POOL) != [pair.label for pair in one.pairs]]
    assert wrong == []


def test_a_statement_is_true_of_two_pairs_and_false_of_two() -> None:
    for one in GROUPS:
        assert sorted(pair.label for pair in one.pairs) == [False, False, True, True]
        assert len({pair[:2] for pair in one.pairs}) == 4
        assert all(pair.left != pair.right for pair in one.pairs)


def test_the_place_of_a_pair_does_not_tell_its_label() -> None:
    for place in range(4):
        share = sum(one.pairs[place].label for one in GROUPS) / len(GROUPS)
        assert 0.4 < share < 0.6


def test_the_same_seed_gives_the_same_group() -> None:
    assert group(POOL, 5) == GROUPS[5]
    assert len({one.statement for one in GROUPS}) > 150


def test_all_forms_occur_about_equally_often() -> None:
    marks = ("total", "exactly", "more", "same", "both images contain", "only one", "neither")
    counts = Counter(next(m for m in marks if m in one.statement) for one in GROUPS)
    assert set(counts) == set(marks)
    assert min(counts.values()) > 0.5 * len(GROUPS) / len(marks)


def test_false_pairs_are_seldom_empty_of_what_is_named() -> None:
    more = [one for one in GROUPS if " has more " in one.statement]
    empty = total = 0
    for one in more:
        for pair in one.pairs:
            if not pair.label:
                total += 1
                empty += one.about.count(POOL[pair.left]) + one.about.count(POOL[pair.right]) == 0
    assert empty < 0.45 * total


def test_words_are_in_the_vocabulary() -> None:
    known = {*head_vocabulary()}
    assert {word for one in GROUPS for word in one.statement.split()} <= known


def test_eight_scenes_are_enough_and_seven_are_not() -> None:
    for seed in range(20):
        one = group(POOL[:8], seed)
        assert judged(one, POOL) == [pair.label for pair in one.pairs]
    with pytest.raises(InputError, match="at least 8 scenes"):
        group(POOL[:7], 0)


def test_scenes_that_are_all_alike_are_refused() -> None:
    with pytest.raises(InputError, match="other scenes"):
        group([POOL[0]] * 8, 0)
