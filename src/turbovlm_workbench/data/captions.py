"""Images with captions, for captioning and retrieval."""

from __future__ import annotations

from pathlib import Path

from turbovlm.errors import InputError
from turbovlm_workbench.data.examples import Captioned
from turbovlm_workbench.data.records import Record, distinct, find_image, read_file


def read_captions(data: Path, images: Path | None = None, split: str = "test") -> list[Captioned]:
    """Read images with captions; the layout is told by the file's content.

    - Karpathy's JSON (COCO, Flickr8k, Flickr30k): ``{"images": [{"filepath", "filename", "split",
      "sentences": [{"raw"}]}]}``. This layout alone has splits. COCO's images are looked for in
      the subfolder ``filepath``, then in ``images`` itself.
    - COCO's JSON (COCO, nocaps): ``{"images": [{"id", "file_name"}], "annotations":
      [{"image_id", "caption"}]}``.
    - JSON lines, or a JSON list, of ``{"image", "captions": [...]}``; the list may also be
      called ``caption``, as in BLIP's files.

    Args:
        data: the file.
        images: the folder that image names are relative to; None for the file's own.
        split: of a Karpathy file.

    Returns:
        Images in the file's order; the id is the image's name.

    Raises:
        InputError: naming the record, the field and the fix.
    """
    folder = data.parent if images is None else images
    found = read_file(data)
    entries = found.records("images") if isinstance(found, Record) and "images" in found else []
    if entries and "sentences" in entries[0]:
        return _karpathy(entries, folder, split, data)
    if split != "test":
        raise InputError(f"{data} has no splits, only Karpathy's files have: leave --split out")
    if isinstance(found, list):
        return _listed(found, folder)
    if "image" in found:
        return _listed([found], folder)
    if entries and "annotations" in found:
        return _coco(entries, found.records("annotations"), folder)
    raise found.error(
        "these are no captions: give COCO's or Karpathy's JSON, or JSON lines of "
        '{"image": NAME, "captions": [...]}'
    )


def _listed(records: list[Record], images: Path) -> list[Captioned]:
    rows = []
    for record in records:
        name = record.text("image")
        field = "caption" if "caption" in record else "captions"
        path = find_image(record, images, [name])
        rows.append((name, record.where, Captioned(name, path, record.texts(field))))
    return distinct(rows)


def _karpathy(entries: list[Record], images: Path, split: str, data: Path) -> list[Captioned]:
    splits = list(dict.fromkeys(entry.text("split") for entry in entries))
    if split not in splits:
        raise InputError(f"{data} has no split {split!r}: use --split {' or '.join(splits)}")
    rows = []
    for entry in entries:
        if entry.text("split") != split:
            continue
        name = entry.text("filename")
        names = [f"{entry.text('filepath')}/{name}", name] if "filepath" in entry else [name]
        path = find_image(entry, images, names)
        rows.append((name, entry.where, Captioned(name, path, entry.texts("sentences", "raw"))))
    return distinct(rows)


def _coco(entries: list[Record], annotations: list[Record], images: Path) -> list[Captioned]:
    captions: dict[str, list[str]] = {}
    known = distinct((entry.key("id"), entry.where, entry) for entry in entries)
    for entry in known:
        captions[entry.key("id")] = []
    for annotation in annotations:
        key = annotation.key("image_id")
        if key not in captions:
            raise annotation.error(f"'image_id' {key} is no image of this file: remove the caption")
        captions[key].append(annotation.text("caption"))
    rows = []
    for entry in known:
        name, texts = entry.text("file_name"), captions[entry.key("id")]
        if not texts:
            raise entry.error(f"image {name} has no caption: add an annotation or remove it")
        path = find_image(entry, images, [name])
        rows.append((name, entry.where, Captioned(name, path, tuple(texts))))
    return distinct(rows)
