"""Studies as tables, with the paper's rows beside, and as plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.report.figure import COLOURS, MARKERS, add_legend, dress_panel
from turbovlm_workbench.report.plot import TEXT
from turbovlm_workbench.studies.run import Ablation, ArmResult, Gap, StudyResult


def study_headers(found: Ablation, study: StudyResult) -> list[str]:
    """Titles of the columns."""
    fine = _finest(found, study)
    measures = [
        f"{m.title} [95 %]" if _is_its_change(found, m, fine) else m.title for m in found.measures
    ]
    published = [f"paper: {column}" for column in study.columns]
    changes = ["change [95 %]", f"{fine.title} to base [95 %]"]
    return ["arm", "tokens", "ideal", *measures, *changes, *published]


def study_rows(found: Ablation, study: StudyResult) -> list[list[str]]:
    """The unmerged model, then every arm, as text, in the order of `study_headers`."""
    blank, fine = [""] * len(study.columns), _finest(found, study)
    numbers = [m.text(found.unmerged[m.key]) for m in found.measures]
    rows = [["unmerged", str(found.shape.tokens), "1.00x", *numbers, "", "", *blank]]
    for arm in study.arms:
        numbers = [
            m.text(arm.metrics[m.key])
            + (_ends(m, arm.gaps[m.key]) if _is_its_change(found, m, fine) else "")
            for m in found.measures
        ]
        published = [f"{n:g}" for n in arm.published] or blank
        first = found.measures[0]
        changes = [_change(first, arm.gaps.get(first.key)), _change(fine, arm.beside.get(fine.key))]
        if arm.label == study.base:
            changes[1] = "base"
        told = [arm.label, str(arm.tokens), f"{arm.ideal:.2f}x"]
        rows.append([*told, *numbers, *changes, *published])
    return rows


def study_title(study: StudyResult) -> str:
    """Name, title and source in one line."""
    source = f" ({study.source})" if study.source else " (not in the paper)"
    return f"{study.name}: {study.title}{source}"


def ablation_notes(found: Ablation) -> list[str]:
    """What the columns mean, one sentence each."""
    shape = found.shape
    return [
        f"{found.model}: {found.task} on {found.examples} examples; {shape.tokens} tokens in "
        f"{shape.depth} blocks, {found.gflops:.4g} GFLOPs unmerged.",
        "tokens: left after the last block. ideal: how many times fewer operations the encoder "
        "needs, counted, which is not a time.",
        f"change: of {found.measures[0].title} to the unmerged model, paired by example, with its "
        "95 % bootstrap interval. to base: likewise, to the arm that is marked so, the paper's "
        "setting or the first of a study.",
        "paper: BLIP's captions of COCO, so another model, other data and another machine: only "
        "the order of the rows and the size of their gaps compare.",
        "random is the mean of 5 draws; S1 to S4 and the baselines are Merge.paper, ours is Merge.",
    ]


def study_verdict(found: Ablation, study: StudyResult) -> str:
    """The best arm of the study; where a drop is allowed, the fastest within it of each line."""
    measure = found.measures[0]
    if study.within is None:
        best = _best(found.measures, study.arms)
        return f"best: {best.label}, {measure.title} {measure.text(best.metrics[measure.key])}"
    parts = []
    for line in dict.fromkeys(arm.line for arm in study.arms):
        good = [a for a in study.arms if a.line == line and _keeps(found, a, study.within)]
        fastest = max(good, key=lambda arm: arm.ideal, default=None)
        parts.append(f"{line} {'none' if fastest is None else f'{fastest.ideal:.2f}x'}")
    return f"within {study.within:.0%} of the unmerged {measure.title}: {', '.join(parts)}"


def study_panels(found: Ablation) -> int:
    """How many panels `paint_study` needs: of the first measure, and the second if there is one."""
    return min(2, len(found.measures))


def paint_study(found: Ablation, study: StudyResult, panels: Sequence[Any]) -> None:
    """The first measures of every arm: lines along the study's axis, else one dot an arm."""
    for axes, measure in zip(panels, found.measures, strict=False):
        draw = _lines if study.axis else _dots
        draw(axes, measure, study)
        level = (100 if measure.percent else 1) * found.unmerged[measure.key]
        line = axes.axhline if study.axis else axes.axvline
        line(level, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        title = f"{measure.title}{' (%)' if measure.percent else ''}"
        dress_panel(axes, title, study.axis or "dashed: unmerged")
    add_legend(panels[0])


def _lines(axes: Any, measure: Measure, study: StudyResult) -> None:
    scale = 100 if measure.percent else 1
    for number, line in enumerate(dict.fromkeys(arm.line for arm in study.arms), start=1):
        arms = [arm for arm in study.arms if arm.line == line and arm.x is not None]
        x, y = [arm.x for arm in arms], [scale * arm.metrics[measure.key] for arm in arms]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, label=line)


def _dots(axes: Any, measure: Measure, study: StudyResult) -> None:
    scale = 100 if measure.percent else 1
    rows = list(range(len(study.arms)))[::-1]
    values = [scale * arm.metrics[measure.key] for arm in study.arms]
    axes.plot(values, rows, color=COLOURS[1], marker="o", markersize=5, linestyle="")
    first = axes.get_subplotspec().is_first_col()
    names = [arm.label for arm in study.arms] if first else []
    axes.set_yticks(rows if first else [], names, fontsize=8 if len(rows) < 12 else 5)


def _best(measures: Sequence[Measure], arms: Sequence[ArmResult]) -> ArmResult:
    """By the first measure, and where that is equal by the next one."""

    def rank(arm: ArmResult) -> list[float]:
        return [arm.metrics[m.key] * (1 if m.better == "higher" else -1) for m in measures]

    return max(arms, key=rank)


def _keeps(found: Ablation, arm: ArmResult, within: float) -> bool:
    measure = found.measures[0]
    whole, now = found.unmerged[measure.key], arm.metrics[measure.key]
    drop = whole - now if measure.better == "higher" else now - whole
    return drop <= within * abs(whole) + 1e-9  # not a hair more through rounding


def _finest(found: Ablation, study: StudyResult) -> Measure:
    """The measure that tells arms apart best: a distance such as KL where there is one, which moves
    with every example, else the first."""
    distances = (m for m in found.measures if m.better == "lower" and m.key in study.arms[0].gaps)
    return next(distances, found.measures[0])


def _is_its_change(found: Ablation, measure: Measure, fine: Measure) -> bool:
    """Whether the change of this measure to the unmerged model is itself, as of a distance."""
    return measure == fine != found.measures[0] and found.unmerged[measure.key] == 0


def _ends(measure: Measure, gap: Gap) -> str:
    return " [{}, {}]".format(*map(measure.text, gap[1:]))


def _change(measure: Measure, gap: Gap | None) -> str:
    if gap is None:
        return ""
    mean, low, high = (f"{'+' if v >= 0 else ''}{measure.text(v)}" for v in gap)
    return f"{mean} [{low}, {high}]"
