"""What each command wrote as JSON, as a section of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from turbovlm_workbench.analyze.encoder import Analysis
from turbovlm_workbench.analyze.language import LanguageAnalysis
from turbovlm_workbench.compare.titles import title_of
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.report import ablation, analysis
from turbovlm_workbench.report.figure import figure_inline
from turbovlm_workbench.report.marked import Mark, marked_words
from turbovlm_workbench.report.trade import paint_trade, trade_points
from turbovlm_workbench.report.words import NOTES, step_marks, step_title
from turbovlm_workbench.run.result import METRICS, metric_rows
from turbovlm_workbench.settings import from_plain
from turbovlm_workbench.studies.run import Ablation


@dataclass(frozen=True)
class Cells:
    """A table.

    Attributes:
        headers: titles.
        rows: cells as text.
        strong: number of the row to put weight on, if any.
        title: above it.
        note: below it.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: int | None = None
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """What a model says of one input: by setting, words and whether they changed.

    Attributes:
        name: of the input.
        uri: a picture as a ``data:`` address; empty for none.
        words: by setting.
    """

    name: str
    uri: str
    words: Mapping[str, Sequence[Mark]]


@dataclass(frozen=True)
class Section:
    """One result.

    Attributes:
        title: what was done to which model.
        verdict: one line.
        rank: whose verdict stands at the head of the page: the lowest.
        figures: large numbers and what they are.
        plots: ``<svg>`` elements and what they show.
        grids: tables.
        pictures: with captions.
        notes: what the columns mean.
        command: the exact command, where the file holds it.
        environment: the machine and the versions of the libraries.
    """

    title: str
    verdict: str
    rank: int
    figures: Sequence[tuple[str, str]] = ()
    plots: Sequence[tuple[str, str]] = ()
    grids: Sequence[Cells] = ()
    pictures: Sequence[Shown] = ()
    notes: Sequence[str] = ()
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)


def written_by(data: Mapping[str, Any]) -> str | None:
    """Which command wrote it; None for none that the report knows."""
    if data.get("kind") in SECTIONS:
        return data["kind"]
    marks = {
        "sweep": ("rows", "front"),
        "bench": ("rows", "advice"),
        "tune": ("trials", "chosen"),
        "eval": ("metrics", "intervals"),
    }
    return next((kind for kind, keys in marks.items() if all(k in data for k in keys)), None)


def section_of(data: Mapping[str, Any], kind: str) -> Section:
    """The section of a result.

    Raises:
        KeyError, TypeError, ValueError: where the file is not what the command writes.
    """
    return SECTIONS[kind](data)


def _bench(data: Mapping[str, Any]) -> Section:
    measures = [Measure(**m) for m in data["measures"]]
    rows = data["rows"]
    names = [row["name"] for row in rows]
    advised = data["advised"]
    strong = names.index(advised) if advised in names else None
    front = data.get("front", ())
    numbers = ("tokens", "GFLOPs", "ideal", "images/s", "speed-up")
    headers = ["setting", *numbers, *(m.title for m in measures)]
    cells = [
        [
            f"{row['name']}{' *' if row['name'] in front else ''}",
            "-" if row["tokens"] is None else str(row["tokens"]),
            f"{row['gflops']:.3g}",
            f"{row['ideal']:.2f}x",
            f"{row['throughput']:.3g}",
            _speed(row["speedup"]),
            *(m.text(row["quality"][m.key]) for m in measures),
        ]
        for row in rows
    ]
    shown = measures[0]
    paint = partial(paint_trade, trade_points(rows, shown), shown)
    figures = []
    if strong is not None:
        best = rows[strong]
        figures.append((f"{best['speedup']['value']:.2f}x", "measured speed"))
        figures.append((shown.text(best["quality"][shown.key]), shown.title))
    notes = [
        f"{data['images']} images; speed on {data['device']}, {data['dtype']}, batch "
        f"{data['batch']}, median of {data['rounds']} interleaved rounds.",
        *(f"{m.title}: {m.about}." for m in measures),
        *(["*: on the front of throughput and loss."] if front else []),
    ]
    plot = (
        "Further right is faster, further up is better; the line is the Pareto front, bars are "
        "intervals of the speed-up.",
        figure_inline(paint, 1),
    )
    return Section(
        title=f"{'sweep' if front else 'bench'}: {data['task']} of {data['model']}",
        verdict=data["advice"],
        rank=1,
        figures=figures,
        plots=[plot],
        grids=[Cells(headers, cells, strong)],
        notes=notes,
        command=data.get("command", ""),
        environment=data["environment"],
    )


def _tune(data: Mapping[str, Any]) -> Section:
    loss, chosen = Measure(**data["loss"]), data["chosen"]
    promise = f"{100 * data['max_loss']:.3g} %"
    if chosen is None:
        verdict = f"Nothing keeps the promise of {promise} and is faster."
    else:
        verdict = (
            f"{chosen['name']} keeps the promise of {promise} and has {_speed(data['speedup'])} "
            "the speed of the unmerged model."
        )
    trials = [trial for trial in data["trials"] if trial["stage"] != "block"]
    rows = [
        [
            trial["stage"],
            trial["name"],
            str(trial["loss"]["images"]),
            f"{trial['drift']:.4f}",
            loss.text(trial["loss"]["mean"]),
        ]
        for trial in trials
    ]
    headers = ["stage", "setting", "images", "drift", loss.title]
    return Section(
        title=f"tune: {data['task']} of {data['model']}",
        verdict=verdict,
        rank=0,
        grids=[Cells(headers, rows, trials.index(chosen) if chosen in trials else None)],
        notes=[f"{loss.title}: {loss.about}."],
        command=data.get("command", ""),
        environment=data["environment"],
    )


def _eval(data: Mapping[str, Any]) -> Section:
    rows = metric_rows(data)
    what = title_of(from_plain(data["merge"])) or "unmerged"
    return Section(
        title=f"eval: {data['task']} of {data['model']}, {what}",
        verdict=f"{' '.join(rows[0])} on {data['examples']} examples, {what}.",
        rank=2,
        grids=[Cells(METRICS, rows)],
        command=data.get("command", ""),
        environment=data.get("environment", {}),
    )


def _analyze(data: Mapping[str, Any]) -> Section:
    found = Analysis.from_dict(data["encoder"])
    blocks = found.sides["unmerged"]
    densest = max(blocks, key=lambda block: block.concentration or 0)
    verdict = (
        f"A quarter of the tokens holds {_percent(densest.concentration)} of the guide's attention "
        f"in block {densest.block}, {_percent(blocks[0].concentration)} in the first."
    )
    paint = partial(analysis.paint_analysis, found)
    plots = [("By block.", figure_inline(paint, analysis.analysis_panels(found)))]
    grids = [Cells(analysis.analysis_headers(found), analysis.analysis_rows(found))]
    notes = analysis.analysis_notes(found)
    if data["language"] is not None:
        inside = LanguageAnalysis.from_dict(data["language"])
        paint = partial(analysis.paint_language, inside)
        plots.append(("Inside the language model.", figure_inline(paint, 2)))
        grids.append(Cells(analysis.LANGUAGE_HEADERS, analysis.language_rows(inside)))
        notes += analysis.language_notes(inside)
    return Section(
        title=f"analyze: {found.model}",
        verdict=verdict,
        rank=4,
        plots=plots,
        grids=grids,
        notes=notes,
        command=data["command"],
        environment=found.environment,
    )


def _ablate(data: Mapping[str, Any]) -> Section:
    fields = {k: v for k, v in data.items() if k not in ("kind", "command")}
    found = Ablation.from_dict(fields)
    plots, grids = [], []
    for study in found.studies:
        paint = partial(ablation.paint_study, found, study)
        plots.append(
            (ablation.study_title(study), figure_inline(paint, ablation.study_panels(found)))
        )
        headers, rows = ablation.study_headers(found, study), ablation.study_rows(found, study)
        verdict = ablation.study_verdict(found, study)
        grids.append(Cells(headers, rows, None, ablation.study_title(study), verdict))
    return Section(
        title=f"ablate: {found.task} of {found.model}",
        verdict=f"{grids[0].title}: {grids[0].note}.",
        rank=3,
        plots=plots,
        grids=grids,
        notes=ablation.ablation_notes(found),
        command=data["command"],
        environment=found.environment,
    )


def _show(data: Mapping[str, Any]) -> Section:
    return _shown_texts(data) if "texts" in data else _shown_pictures(data)


def _shown_texts(data: Mapping[str, Any]) -> Section:
    texts = []
    for one in data["texts"]:
        words = {
            f"{side}, {step_title(step)}": step_marks(one["words"], step["groups"])
            for side, steps in one["sides"].items()
            for step in steps
        }
        texts.append(Shown(one["text"], "", words))
    first = data["texts"][0]
    side, steps = next(iter(first["sides"].items()))
    left = len(steps[-1]["groups"]) if steps else len(first["words"])
    return Section(
        title=f"show: words in {data['model']}",
        verdict=f'{side} leaves {left} of {len(first["words"])} tokens of "{first["text"]}".',
        rank=5,
        pictures=texts,
        notes=NOTES,
        command=data["command"],
    )


def _shown_pictures(data: Mapping[str, Any]) -> Section:
    pictures = []
    changed = total = 0
    for one in data["pictures"]:
        before, *_ = one["words"].values()
        words = {side: marked_words(before, text) for side, text in one["words"].items()}
        changed += sum(text != before for text in one["words"].values())
        total += len(words) - 1
        pictures.append(Shown(one["name"], one["strip"], words))
    verdict = f"{total - changed} of {total} outputs stay as they are unmerged."
    notes = [
        "Patches that became one token share their mean colour; tokens merge by likeness, so the "
        "parts of a group need not touch. guide: attention of the unmerged model's guide, mean "
        "over its blocks, the brighter the more.",
    ]
    return Section(
        title=f"show: {data['model']}",
        verdict=verdict,
        rank=5,
        pictures=pictures,
        notes=notes,
        command=data["command"],
    )


SECTIONS: dict[str, Callable[[Mapping[str, Any]], Section]] = {
    "bench": _bench,
    "sweep": _bench,
    "tune": _tune,
    "eval": _eval,
    "analyze": _analyze,
    "ablate": _ablate,
    "show": _show,
}


def _speed(speed: Mapping[str, float]) -> str:
    value = f"{speed['value']:.2f}x"
    ends = f" [{speed['low']:.2f}, {speed['high']:.2f}]"
    return value if speed["low"] == speed["high"] else value + ends


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
