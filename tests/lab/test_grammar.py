"""The grammar round trip, and the metric on cases worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbovlm_lab.grammar import (
    Mention,
    attribute_accuracy,
    caption_vocabulary,
    describe,
    parse,
    trivial_captions,
)
from turbovlm_lab.scenes import COLOURS, POSITIONS, SHAPES, SIZES, scene

MENTIONS = st.builds(
    Mention,
    st.sampled_from(SIZES),
    st.sampled_from(tuple(COLOURS)),
    st.sampled_from(SHAPES),
    st.sampled_from(POSITIONS),
)
RED = Mention("large", "red", "circle", "top left")
BLUE = Mention("small", "blue", "star", "centre")
GREEN = Mention("small", "green", "ring", "bottom right")


@given(st.lists(MENTIONS, min_size=1, max_size=5))
def test_parse_reads_back_what_describe_writes(mentions: list[Mention]) -> None:
    assert list(parse(describe(mentions))) == mentions


@given(st.lists(MENTIONS, min_size=1, max_size=5))
def test_captions_use_the_vocabulary_alone(mentions: list[Mention]) -> None:
    assert set(describe(mentions).replace(",", " ,").split()) <= set(caption_vocabulary())


def test_parse_takes_spaces_before_commas_and_capitals() -> None:
    assert parse("A large red circle at the top left , a small blue star at the centre") == (
        RED,
        BLUE,
    )


@pytest.mark.parametrize("text", ["", "a red circle", "a large red circle at the top left left"])
def test_parse_refuses_other_sentences(text: str) -> None:
    with pytest.raises(ValueError, match="grammar"):
        parse(text)


def test_scene_captions_describe_their_objects() -> None:
    drawn = scene(7)
    assert [tuple(m) for m in parse(drawn.caption)] == [
        (o.size, o.colour, o.shape, o.position) for o in drawn.objects
    ]


def test_perfect_captions_score_one() -> None:
    score = attribute_accuracy([describe([RED, BLUE])], [[RED, BLUE]])
    assert (score.precision, score.recall, score.exact, score.count) == (1, 1, 1, 1)


def test_one_wrong_colour_costs_one_attribute_of_eight() -> None:
    said = [RED._replace(colour="green"), BLUE]
    score = attribute_accuracy([describe(said)], [[RED, BLUE]])
    assert (score.precision, score.recall, score.exact, score.count) == (7 / 8, 7 / 8, 0, 1)
    assert score.by_attribute == {"size": 1, "colour": 0.5, "shape": 1, "position": 1}


def test_a_missing_object_costs_recall_alone() -> None:
    score = attribute_accuracy([describe([RED, GREEN])], [[RED, BLUE, GREEN]])
    assert (score.precision, score.recall, score.exact, score.count) == (1, 8 / 12, 0, 0)


def test_an_extra_object_costs_precision_alone() -> None:
    score = attribute_accuracy([describe([RED, BLUE, GREEN])], [[RED, GREEN]])
    assert (score.precision, score.recall, score.exact, score.count) == (8 / 12, 1, 0, 0)


def test_pairs_keep_the_reading_order() -> None:
    # Swapped, only one of the two mentions can be paired with its object; the other pair is
    # not formed, since crossing pairs are not allowed.
    score = attribute_accuracy([describe([BLUE, RED])], [[RED, BLUE]])
    assert score.precision == score.recall == 0.5


def test_a_broken_clause_counts_as_four_wrong_attributes() -> None:
    score = attribute_accuracy([describe([RED]) + ", the star the"], [[RED, BLUE]])
    assert (score.precision, score.recall, score.exact, score.count) == (0.5, 0.5, 0, 1)


def test_an_empty_caption_scores_nothing() -> None:
    score = attribute_accuracy([""], [[RED]])
    assert (score.precision, score.recall, score.exact) == (0, 0, 0)


def test_captions_and_scenes_must_match_in_number() -> None:
    with pytest.raises(ValueError, match="captions"):
        attribute_accuracy(["a"], [])


def test_the_trivial_captioner_repeats_the_most_frequent_words() -> None:
    captions = trivial_captions([[RED, BLUE], [RED, GREEN]], 3)
    assert len(captions) == 3
    assert len(set(captions)) == 1
    said = parse(captions[0])
    assert len(said) == 2
    assert all(m[:3] == ("large", "red", "circle") for m in said)
