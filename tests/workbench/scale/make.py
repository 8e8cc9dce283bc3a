"""Pictures and jobs for the tests of this folder, in the layouts that people have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from turbovlm_lab import scenes

MODEL = "lab:retrieval"


def scene_files(folder: Path, number: int) -> Path:
    """Scenes as PNG files, some in a subfolder."""
    for index in range(number):
        path = folder / ("sub" if index % 3 == 2 else ".") / f"scene{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = scenes.scene(scenes.seed_of_split("test", index)).image
        Image.fromarray(image).save(path)
    return folder


def parquet(path: Path, pictures: Sequence[bytes | None], group: int, *, nested: bool) -> Path:
    """One Parquet file; nested is the layout of the hub's data sets."""
    plain = pa.binary()
    kind = pa.struct({"bytes": plain, "path": pa.string()}) if nested else plain
    rows: list[Any] = [{"bytes": p, "path": "x.png"} if nested else p for p in pictures]
    table = pa.table({"image": pa.array(rows, kind), "label": range(len(rows))})
    pq.write_table(table, path, row_group_size=group)
    return path
