from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.workbench.report.make import report, row
from turbovlm.config import Merge, VisualTokens
from turbovlm.measure.speed import Ratio
from turbovlm_workbench.compare.rows import EagerSpeed
from turbovlm_workbench.report.tune import tune_lines, tune_table
from turbovlm_workbench.tasks.classification import AGREEMENT, GIVEN_UP
from turbovlm_workbench.tune.trials import Loss, Trial
from turbovlm_workbench.tune.tune import Tuned

OUT = Path("turbo.json")


def trial(stage: str, r: int, loss: float, images: int = 160) -> Trial:
    merge = Merge(r=r)
    return Trial(
        stage,
        f"turbo r={r}",
        (merge,),
        0.01,
        Loss(loss, 0.002, images, loss + 0.004),
        {"agreement": 0.97},
    )


def tuned(**changes: Any) -> Tuned:
    trials = (
        trial("block", 1, 0.0, 80),
        trial("shape", 8, 0.004, 80),
        trial("ladder", 10, 0.009, 80),
        trial("validation", 10, 0.012),
        trial("validation", 9, 0.006),
    )
    values: dict[str, Any] = {
        "model": "timm:some",
        "task": "classification",
        "max_loss": 0.01,
        "loss": GIVEN_UP,
        "measures": (AGREEMENT,),
        "seed": 0,
        "batch": 8,
        "device": "cpu",
        "dtype": "float32",
        "merge_time": 0.14,
        "chosen": trials[-1],
        "closest": trials[-1],
        "speedup": Ratio(1.31, 1.29, 1.33),
        "beside": None,
        "trials": trials,
        "environment": {},
    }
    return Tuned(**{**values, **changes})


def said(found: Tuned) -> str:
    return "\n".join(tune_lines(found, OUT))


def test_the_line_to_use() -> None:
    text = said(tuned())
    assert "5 evaluations, 1 of them of single blocks" in text
    assert "Accepted is what keeps within 1 % on images" in text
    assert (
        "turbo r=9: 1.31x [1.29, 1.33] the speed of the unmerged model, confidence lost "
        "0.6 % ± 0.2 % on 160 other images. Saved in turbo.json:\n"
        'turbovlm.apply(model, turbovlm.Merge.load("turbo.json"))'
    ) in text
    assert "A merge takes 0.14 of a block's time here." in text
    assert "weighs" not in text
    keep = VisualTokens(keep=0.5)
    for settings, line in (
        ((keep,), 'turbovlm.apply(model, turbovlm.VisualTokens.load("turbo.json"))'),
        ((Merge(r=9), keep), "turbovlm.apply(model, turbovlm.Merge(r=9), turbovlm.VisualTokens("),
    ):
        other = dataclasses.replace(trial("validation", 9, 0.006), settings=settings)
        assert line in said(tuned(chosen=other, closest=other))


def test_nothing_is_worth_it() -> None:
    text = said(tuned(chosen=None, speedup=Ratio(1.01, 0.98, 1.05)))
    assert "Nothing is worth it: within 1 % the fastest setting, turbo r=9, has 1.01x" in text
    assert "Merge.load" not in text
    text = said(tuned(chosen=None, closest=None, speedup=None))
    assert "Nothing is worth it: no setting keeps the promise of 1 %. Nothing was saved." in text


def test_few_images_are_named() -> None:
    few = (trial("validation", 9, 0.0, 14),)
    text = said(tuned(trials=few))
    assert "One of the 14 images weighs 7.1 %, more than the promise" in text


def test_the_table_leaves_out_the_probes_and_groups_the_stages() -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(tune_table(tuned()))
    rows = [row.rstrip() for row in console.export_text().splitlines() if row.strip()]
    assert rows[0].split() == [
        "stage", "setting", "images", "drift", "confidence", "lost", "±", "agreement"
    ]  # fmt: skip
    assert [row[:14].strip() for row in rows[1:]] == [
        "schedules", "more and more", "other images", ""
    ]  # fmt: skip
    assert "turbo r=1 " not in "\n".join(rows)
    assert "0.6 %" in rows[-1]


def test_plain_data_holds_the_choice() -> None:
    data = tuned().to_dict()
    assert data["settings"] == {"kind": "merge", "r": 9}
    assert data["trials"][0]["settings"] == {"kind": "merge", "r": 1}
    assert data["speedup"] == {"value": 1.31, "low": 1.29, "high": 1.33}
    nothing = dataclasses.replace(tuned(), chosen=None, closest=None, speedup=None).to_dict()
    assert (nothing["settings"], nothing["chosen"], nothing["speedup"]) == (None, None, None)


def test_the_limit_of_each_mode_stands_beside() -> None:
    low, high = Ratio(0.95, 0.94, 0.96), Ratio(1.4, 1.39, 1.41)
    eager = EagerSpeed(100.0, Ratio(0.9, 0.89, 0.91), low)
    merged = dataclasses.replace(row(Merge(r=8), 1.3, 0.95), limit=high, eager=eager)
    found = report(rows=(row(None, 1.0, 1.0), merged), mode="graph", launches="Use graphs.")
    assert said(tuned(beside=found)).endswith(
        "turbo r=8 at batch 32: eager 0.90x, of at most 0.95x by dropping as many tokens; "
        "graph 1.30x, of at most 1.40x by dropping as many tokens.\nUse graphs."
    )
    alone = dataclasses.replace(merged, limit=None, eager=None)
    found = report(rows=(row(None, 1.0, 1.0), alone))
    assert said(tuned(beside=found)).endswith("turbo r=8 at batch 32: eager 1.30x.")
