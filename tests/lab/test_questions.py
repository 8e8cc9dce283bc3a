"""Questions have the answer that the scene gives, and their words do not give it away."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.lab.reading import cell, meant
from turbovlm_lab import grammar, kinds, questions
from turbovlm_lab.questions import ANSWERS, SceneQuestion, ask
from turbovlm_lab.scenes import Object, layout, scene, seed_of_split

SCENES = [layout(seed_of_split("test", index)) for index in range(400)]
ASKED = [ask(objects, index) for index, objects in enumerate(SCENES)]


def right(question: SceneQuestion, objects: tuple[Object, ...]) -> bool:
    """Whether the answer is right, from the words of the question and the objects alone."""
    text = question.text.removesuffix("?")
    if text.startswith("how many "):
        phrase = text.removeprefix("how many ").removesuffix(" are there")
        return question.answer == str(len(meant(phrase, objects)))
    if text.startswith("is there "):
        found = meant(text.removeprefix("is there "), objects)
        return question.answer == ("yes" if found else "no")
    if text.startswith("where is "):
        (one,) = meant(text.removeprefix("where is "), objects)
        return cell(question.answer) == (one.row, one.column)
    ask_for, _, phrase = text.removeprefix("what ").partition(" is ")
    (one,) = meant(phrase, objects)
    return question.answer == getattr(one, ask_for)


def test_every_answer_is_right() -> None:
    wrong = [
        (question, objects)
        for asked, objects in zip(ASKED, SCENES, strict=True)
        for question in asked
        if not right(question, objects)
    ]
    assert wrong == []


def test_the_check_notices_wrong_answers() -> None:
    for question in ASKED[0]:
        others = [question._replace(answer=a) for a in ANSWERS if a != question.answer]
        same_topic = [
            o
            for o in others
            if o.answer in {q.answer for a in ASKED for q in a if q.topic == question.topic}
        ]
        assert same_topic
        assert not any(right(o, SCENES[0]) for o in same_topic)


def test_a_seed_asks_the_same_and_another_seed_something_else() -> None:
    assert ask(SCENES[3], 3) == ASKED[3]
    assert ask(SCENES[3], 4) != ASKED[3]
    assert layout(7) == scene(7).objects


def test_yes_and_no_are_balanced_whatever_the_words() -> None:
    shapes: dict[str, Counter[int]] = {"yes": Counter(), "no": Counter()}
    for asked in ASKED:
        about = [q for q in asked if q.topic == "presence"]
        assert sorted(q.answer for q in about) == ["no", "yes"]
        told = [[name for name in q.about._fields if getattr(q.about, name)] for q in about]
        assert told[0] == told[1]
        for question in about:
            shapes[question.answer][len(question.text.split())] += 1
    # Words such as "top left" make a length differ now and then, and no more than that.
    assert sum((shapes["yes"] - shapes["no"]).values()) < 0.1 * len(ASKED)


def test_all_topics_and_answers_occur() -> None:
    flat = [question for asked in ASKED for question in asked]
    assert {q.answer for q in flat} == set(ANSWERS)
    topics = Counter(q.topic for q in flat)
    assert set(topics) == {"size", "colour", "shape", "position", "count", "presence"}
    assert all(topics[name] == len(ASKED) for name in ("size", "colour", "shape", "count"))
    assert topics["position"] > 0.95 * len(ASKED)


def test_no_topic_is_answered_by_one_frequent_word() -> None:
    for topic, most in (("size", 0.6), ("colour", 0.2), ("shape", 0.25), ("position", 0.2)):
        counts = Counter(q.answer for asked in ASKED for q in asked if q.topic == topic)
        assert counts.most_common(1)[0][1] < most * counts.total(), topic


def test_words_are_in_the_vocabulary() -> None:
    known = {
        *grammar.caption_vocabulary(),
        *kinds.kind_vocabulary(),
        *questions.question_vocabulary(),
    }
    said = {
        word
        for asked in ASKED
        for q in asked
        for word in f"{q.text} {q.answer}".replace("?", " ?").split()
    }
    assert said <= known
    assert {"orange", "an"} <= said


@pytest.mark.parametrize(
    ("kind", "singular", "plural"),
    [
        (kinds.Kind(), "an object", "objects"),
        (kinds.Kind(colour="orange"), "an orange object", "orange objects"),
        (kinds.Kind("small", None, "cross"), "a small cross", "small crosses"),
        (
            kinds.Kind(None, "red", "star", "top left"),
            "a red star at the top left",
            "red stars at the top left",
        ),
    ],
)
def test_kinds_read_as_english(kind: kinds.Kind, singular: str, plural: str) -> None:
    assert (kind.indefinite, kind.plural) == (singular, plural)
