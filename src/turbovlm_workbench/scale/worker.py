"""A worker: one loaded and patched model in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

import turbovlm
from turbovlm.errors import InputError, ModelError
from turbovlm_workbench.data.images import decode_image
from turbovlm_workbench.load.device import pick_device, pick_dtype
from turbovlm_workbench.run.identity import model_digest
from turbovlm_workbench.scale.parts import DATA, ERROR, ID, OF, PART
from turbovlm_workbench.scale.work import Asked, load_work
from turbovlm_workbench.settings import Settings


@dataclass(frozen=True)
class Employment:
    """What a worker is told; plain values, which travel to its machine.

    Args:
        asked: what to do.
        applied: to the model; nothing for the model as it is.
        digest: of the model's content, so that all workers have the same one.
        device: where to compute.
        dtype: number format of weights and pixels, by its name.
    """

    asked: Asked
    applied: Settings
    digest: str
    device: str
    dtype: str


class Worker:
    """Callable: pictures in, results out.

    Raises:
        TurboError: if the model cannot be loaded or patched, or is another one than the job's.
    """

    def __init__(self, told: Employment) -> None:
        device = pick_device(told.device)
        dtype = pick_dtype(told.dtype, device)
        self.work = load_work(told.asked)
        if model_digest(self.work.parts) != told.digest:
            raise ModelError(
                f"{told.asked.model} holds other weights on this machine than where the job was "
                "started: give all machines the same ones"
            )
        model = self.work.loaded.model.eval().to(device=device, dtype=dtype)
        if told.applied:
            turbovlm.apply(model, *told.applied)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of `parts.READ` to the same rows with a result, or an error, in place of the bytes.

        Raises:
            TurboError: if the model cannot go on; a bad picture is no reason.
        """
        pixels: list[Tensor] = []
        good: list[int] = []
        errors: list[str | None] = []
        for index, row in enumerate(batch.select([ID, DATA, ERROR]).to_pylist()):
            found = row[ERROR] or self._pixels(row[DATA], row[ID])
            if isinstance(found, Tensor):
                pixels.append(found)
                good.append(index)
            errors.append(found if isinstance(found, str) else None)
        results: list[Any] = [None] * len(errors)
        for index, result in zip(good, self._run(pixels), strict=True):
            results[index] = result
        kept = batch.select([PART, OF, ID]).append_column(ERROR, pa.array(errors, pa.string()))
        return kept.append_column(self.work.column, pa.array(results, self.work.type))

    def _pixels(self, data: bytes, name: str) -> Tensor | str:
        """Pixels (3, H, W), or why there are none."""
        try:
            return self.work.loaded.prepare([decode_image(data, name)])[0]
        except InputError as error:
            return str(error)
        except Exception as error:  # a picture of one pixel, of a shape that cannot be resized
            return f"cannot prepare image {name} ({error or type(error).__name__})"

    def _run(self, pixels: Sequence[Tensor]) -> Sequence[Any]:
        if not pixels:
            return []
        with torch.inference_mode():
            return self.work.run(self.work.loaded.batch(pixels))
