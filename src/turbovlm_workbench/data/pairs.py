"""Statements about two images (NLVR2)."""

from __future__ import annotations

from pathlib import Path

from turbovlm_workbench.data.examples import Pair
from turbovlm_workbench.data.records import Record, distinct, find_image, record_list

_LABELS = {"true": True, "false": False}


def read_pairs(data: Path, images: Path | None = None) -> list[Pair]:
    """Read statements about pairs of images, from JSON lines or a JSON list.

    - NLVR2: ``{"identifier": "dev-850-0-1", "sentence", "label": "True"}``. The identifier is
      split, set, pair and sentence, and the images are dev-850-0-img0.png and -img1.png, looked
      for in ``images``, its subfolder of the split, and of the record's ``directory`` (training).
      As in the official evaluation a group is a set and a sentence: its pairs differ only in the
      images.
    - ``{"images": [LEFT, RIGHT], "sentence", "label"}``, as in BLIP's files; a group has the same
      sentence.

    Args:
        data: the file.
        images: the folder that image names are relative to; None for the file's own.

    Returns:
        Pairs in the file's order; the id is the identifier, or the images with the sentence.

    Raises:
        InputError: naming the record, the field and the fix.
    """
    folder = data.parent if images is None else images
    rows = []
    for record in record_list(data):
        pair = _nlvr2(record, folder) if "identifier" in record else _listed(record, folder)
        rows.append((pair.id, record.where, pair))
    return distinct(rows)


def _nlvr2(record: Record, images: Path) -> Pair:
    key = record.text("identifier")
    parts = key.split("-")
    if len(parts) != 4 or not all(parts):
        raise record.error(f"'identifier' {key!r} must be split-set-pair-sentence: correct it")
    split, group, pair, sentence = parts
    folders = ["", f"{split}/"]
    if "directory" in record:
        folders += [f"{split}/{record.key('directory')}/", f"{record.key('directory')}/"]
    left, right = (
        find_image(record, images, [f"{f}{split}-{group}-{pair}-{side}.png" for f in folders])
        for side in ("img0", "img1")
    )
    whole = f"{split}-{group}-{sentence}"
    return Pair(key, left, right, record.text("sentence"), _label(record), whole)


def _listed(record: Record, images: Path) -> Pair:
    names = record.texts("images")
    if len(names) != 2:
        raise record.error(f"'images' must be left and right, got {len(names)}: correct it")
    left, right = (find_image(record, images, [name]) for name in names)
    text = record.text("sentence")
    return Pair(" ".join([*names, text]), left, right, text, _label(record), text)


def _label(record: Record) -> bool:
    value = record.fields.get("label")
    label = _LABELS.get(str(value).lower())  # the official files have texts
    if label is None:
        raise record.error(f"'label' must be True or False, got {value!r}: correct it")
    return label
