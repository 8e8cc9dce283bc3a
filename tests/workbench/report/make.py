"""A finished bench with round numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from turbovlm.config import Merge
from turbovlm.measure.speed import Ratio
from turbovlm_workbench.compare.rows import BenchReport, BenchRow
from turbovlm_workbench.compare.samples import Sample
from turbovlm_workbench.load.loaded import UNMERGED
from turbovlm_workbench.tasks.classification import ACCURACY, AGREEMENT, KL, LOST


def row(config: Merge | None, speed: float, agreement: float, accuracy: float = 0.8) -> BenchRow:
    return BenchRow(
        name=UNMERGED if config is None else f"{config.method} r={config.r}",
        settings=() if config is None else (config,),
        fused=False,
        baseline=UNMERGED,
        tokens=197 if config is None else 197 - 12 * int(str(config.r)),
        r=None if config is None else (int(str(config.r)),) * 12,
        visual=None,
        gflops=1.258 / speed,
        ideal=speed,
        throughput=200.0 * speed,
        spread=0.02,
        speedup=Ratio(speed, speed - 0.05, speed + 0.05),
        limit=None,
        eager=None,
        page_faults=12.0,
        peak_mib=27.7,
        first_token=None,
        quality={
            "accuracy": accuracy,
            "agreement": agreement,
            "kl": 0.0315,
            "loss": 0.8 - accuracy,
        },
    )


def report(**changes: Any) -> BenchReport:
    rows = (
        row(None, 1.0, 1.0),
        row(Merge(r=4), 1.2, 0.98),
        row(Merge(r=8), 1.4, 0.95, 0.795),
        row(Merge(r=4, method="random"), 1.2, 0.90, 0.7),
        row(Merge(r=8, method="random"), 1.4, 0.70, 0.6),
    )
    values: dict[str, Any] = {
        "model": "timm:some_<model>",
        "task": "classification",
        "images": 500,
        "batch": 32,
        "device": "cpu",
        "dtype": "float32",
        "mode": "eager",
        "rounds": 10,
        "measures": (ACCURACY, AGREEMENT, KL),
        "loss": LOST,
        "rows": rows,
        "advice": "Use turbo r=8.",
        "launches": None,
        "advised": "turbo r=8",
        "environment": {"cpu": "a cpu", "threads": 2, "torch": "2"},
    }
    return BenchReport(**{**values, **changes})


def sample(merged: str = "a cat") -> Sample:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    owner = np.arange(16, dtype=np.int64).reshape(4, 4)
    owner[0, :2] = 99
    return Sample("photo <1>", picture, "a dog", merged, owner, 16)
