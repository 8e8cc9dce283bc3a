"""Quality against speed of any bench or sweep, from its JSON, with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turbovlm_workbench.compare.titles import line_of
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.report.figure import COLOURS, MARKERS, add_legend, dress_panel
from turbovlm_workbench.report.plot import TEXT
from turbovlm_workbench.settings import from_plain


@dataclass(frozen=True)
class TradePoint:
    """One setting.

    Attributes:
        name: of the setting.
        line: what settings share that differ in their amount alone.
        speed: measured speed-up.
        low, high: its interval.
        quality: the measure.
    """

    name: str
    line: str
    speed: float
    low: float
    high: float
    quality: float


def trade_points(rows: Sequence[Mapping[str, Any]], measure: Measure) -> list[TradePoint]:
    """The points of the rows of a bench or a sweep."""
    return [
        TradePoint(
            name=row["name"],
            line=line_of(from_plain(row["settings"])) or "unmerged",
            speed=row["speedup"]["value"],
            low=row["speedup"]["low"],
            high=row["speedup"]["high"],
            quality=row["quality"][measure.key],
        )
        for row in rows
    ]


def pareto(points: Sequence[TradePoint], measure: Measure) -> list[TradePoint]:
    """Those that no other one beats in speed and quality, the slowest first."""
    sign = 1 if measure.better == "higher" else -1

    def beaten(point: TradePoint) -> bool:
        ours = point.speed, sign * point.quality
        others = ((p.speed, sign * p.quality) for p in points)
        return any(o != ours and o[0] >= ours[0] and o[1] >= ours[1] for o in others)

    return sorted((p for p in points if not beaten(p)), key=lambda p: p.speed)


def paint_trade(points: Sequence[TradePoint], measure: Measure, panels: Sequence[Any]) -> None:
    """Every setting, intervals of the speed-up, and the front as a line."""
    axes, scale = panels[0], 100 if measure.percent else 1
    for number, line in enumerate(dict.fromkeys(p.line for p in points)):
        colour, some = COLOURS[number % len(COLOURS)], [p for p in points if p.line == line]
        y = [scale * p.quality for p in some]
        axes.hlines(y, [p.low for p in some], [p.high for p in some], color=colour, alpha=0.3)
        marker = MARKERS[number % len(MARKERS)]
        x = [p.speed for p in some]
        axes.plot(x, y, color=colour, marker=marker, markersize=6, linestyle="", label=line)
    best = pareto(points, measure)
    corners = [p.speed for p in best], [scale * p.quality for p in best]
    axes.plot(*corners, color=TEXT, linewidth=1.0, alpha=0.7, label="front")
    axes.xaxis.set_major_formatter("{x:g}x")
    unit = " (%)" if measure.percent else ""
    dress_panel(axes, f"{measure.title}{unit}", "measured speed-up over the unmerged model")
    add_legend(axes)
