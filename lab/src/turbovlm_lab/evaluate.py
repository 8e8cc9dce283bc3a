"""Measure the captioner on unseen scenes: ``python -m turbovlm_lab.evaluate``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from turbovlm_lab import captioner, options
from turbovlm_lab.grammar import (
    ATTRIBUTES,
    Accuracy,
    Describable,
    attribute_accuracy,
    trivial_captions,
)
from turbovlm_lab.scenes import MAX_OBJECTS, scene, seed_of_split

_TRAINING_SCENES = 500  # enough for the trivial captioner to see what is frequent


def evaluate_captioner(model: Any, processor: Any, name: str, number: int) -> Accuracy:
    """Accuracy of greedy captions on the first ``number`` scenes of a split.

    The model is left in the mode (training or evaluation) in which it came.
    """
    drawn = [scene(seed_of_split(name, index)) for index in range(number)]
    was_training = model.training
    model.eval()
    texts = captioner.write_captions(model, processor, [item.image for item in drawn])
    model.train(was_training)
    return attribute_accuracy(texts, [item.objects for item in drawn])


def baselines(name: str, number: int) -> dict[int, Accuracy]:
    """Accuracy of the trivial captioner on the same scenes, by number of clauses (1 to 5)."""
    training = [scene(seed_of_split("train", index)).objects for index in range(_TRAINING_SCENES)]
    truths: list[Sequence[Describable]] = [
        scene(seed_of_split(name, index)).objects for index in range(number)
    ]
    return {
        clauses: attribute_accuracy(trivial_captions(training, number, clauses=clauses), truths)
        for clauses in range(1, MAX_OBJECTS + 1)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m turbovlm_lab.evaluate``."""
    parser = argparse.ArgumentParser(prog="python -m turbovlm_lab.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=options.positive_count, default=1000, help="how many")
    parser.add_argument("--split", default="test", choices=("test", "validation", "train"))
    parser.add_argument("--weights", type=Path, default=captioner.WEIGHTS, help="folder")
    given = parser.parse_args(arguments)
    model, processor = captioner.load_captioner(given.weights)
    rows = {"captioner": evaluate_captioner(model, processor, given.split, given.scenes)}
    for clauses, score in baselines(given.split, given.scenes).items():
        rows[f"trivial, {clauses}"] = score
    columns = ("precision", "recall", "exact", "count")
    table = Table(
        title=f"{given.scenes} {given.split} scenes, %",
        caption="trivial, n: always the same n clauses, of the most frequent words",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for heading in ("", *columns, *ATTRIBUTES):
        table.add_column(heading, no_wrap=True, justify="right" if heading else "left")
    for label, score in rows.items():
        shares = [getattr(score, column) for column in columns]
        shares += [score.by_attribute[name] for name in ATTRIBUTES]
        table.add_row(label, *(f"{100 * share:.1f}" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    main()
