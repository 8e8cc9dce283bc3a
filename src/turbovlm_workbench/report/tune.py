"""What tune found, for the terminal: the evaluations, the promise, and the line to use."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from turbovlm_workbench.settings import code_of
from turbovlm_workbench.tune.trials import Trial
from turbovlm_workbench.tune.tune import Tuned

STAGES = {
    "collapse": "the last block",
    "shape": "schedules",
    "alpha": "semantic weight",
    "ladder": "more and more",
    "validation": "other images",
}


def shown_trials(tuned: Tuned) -> list[Trial]:
    """Every evaluation but the probes of single blocks, in order."""
    return [trial for trial in tuned.trials if trial.stage in STAGES]


def tune_headers(tuned: Tuned) -> list[str]:
    """Titles of the columns."""
    heads = ["stage", "setting", "images", "drift", tuned.loss.title, "±"]
    return heads + [measure.title for measure in tuned.measures]


def tune_cells(tuned: Tuned) -> list[list[str]]:
    """One row as text for each of `shown_trials`; a stage is named in the first of its rows."""
    rows, last = [], None
    for trial in shown_trials(tuned):
        rows.append(
            [
                STAGES[trial.stage] if trial.stage != last else "",
                trial.name,
                str(trial.loss.images),
                f"{trial.drift:.4f}",
                tuned.loss.text(trial.loss.mean),
                tuned.loss.text(trial.loss.error),
                *(measure.text(trial.quality[measure.key]) for measure in tuned.measures),
            ]
        )
        last = trial.stage
    return rows


def tune_table(tuned: Tuned) -> Table:
    """The same for the terminal, an empty line between stages."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for title in tune_headers(tuned):
        left = title in ("stage", "setting")
        view.add_column(title, justify="left" if left else "right", no_wrap=not left)
    for trial, cells in zip(shown_trials(tuned), tune_cells(tuned), strict=True):
        if cells[0] and view.row_count:
            view.add_row()
        view.add_row(*cells, style="bold green" if trial == tuned.chosen else "")
    return view


def tune_lines(tuned: Tuned, out: Path) -> list[str]:
    """What was promised and measured, and what to do with it."""
    held = max((t.loss.images for t in tuned.trials if t.stage == "validation"), default=0)
    probes = sum(trial.stage == "block" for trial in tuned.trials)
    said = [
        f"{tuned.model}: {len(tuned.trials)} evaluations, {probes} of them of single blocks; speed "
        f"on {tuned.device}, {tuned.dtype}, batch {tuned.batch}. A merge takes "
        f"{tuned.merge_time:.2f} of a block's time here.",
        f"{tuned.loss.title}: {tuned.loss.about}. Accepted is what keeps within {_promise(tuned)} "
        "on images that were not searched with, by the 95 % bound of the mean.",
    ]
    if held and 1 / held > tuned.max_loss:
        said.append(
            f"One of the {held} images weighs {100 / held:.1f} %, more than the promise: give more."
        )
    return [*said, "", tune_verdict(tuned, out), *_beside(tuned)]


def tune_verdict(tuned: Tuned, out: Path) -> str:
    """The result in a sentence or two, and what became of it."""
    said = tune_result(tuned)
    if tuned.chosen is None:
        return f"{said} Nothing was saved."
    return f"{said} Saved in {out}:\n{_line(tuned.chosen, out)}"


def tune_result(tuned: Tuned) -> str:
    """The result in a sentence."""
    promise = _promise(tuned)
    if tuned.chosen is not None and tuned.speedup is not None:
        return (
            f"{tuned.chosen.name}: {_speed(tuned)} the speed of the unmerged model, "
            f"{_loss(tuned, tuned.chosen)}."
        )
    if tuned.closest is None:
        return f"Nothing is worth it: no setting keeps the promise of {promise}."
    return (
        f"Nothing is worth it: within {promise} the fastest setting, {tuned.closest.name}, has "
        f"{_speed(tuned)} the speed of the unmerged model."
    )


def _beside(tuned: Tuned) -> list[str]:
    """Each mode and its limit, and what to do where launches are the cost."""
    if tuned.beside is None:
        return []
    row = tuned.beside.rows[-1]
    modes = [(tuned.beside.mode, row.speedup, row.limit)]
    if row.eager is not None:
        modes.insert(0, ("eager", row.eager.speedup, row.eager.limit))
    said = [
        f"{mode} {speedup.value:.2f}x"
        + ("" if limit is None else f", of at most {limit.value:.2f}x by dropping as many tokens")
        for mode, speedup, limit in modes
    ]
    lines = [f"{row.name} at batch {tuned.beside.batch}: {'; '.join(said)}."]
    return lines if tuned.beside.launches is None else [*lines, tuned.beside.launches]


def _line(chosen: Trial, out: Path) -> str:
    """The line of Python to use."""
    if len(chosen.settings) > 1:
        return code_of(chosen.settings)
    kind = type(next(iter(chosen.settings))).__name__
    return f'turbovlm.apply(model, turbovlm.{kind}.load("{out}"))'


def _promise(tuned: Tuned) -> str:
    return f"{100 * tuned.max_loss:.3g} %"


def _speed(tuned: Tuned) -> str:
    speed = tuned.speedup
    return "" if speed is None else f"{speed.value:.2f}x [{speed.low:.2f}, {speed.high:.2f}]"


def _loss(tuned: Tuned, trial: Trial) -> str:
    mean, error = (tuned.loss.text(value) for value in (trial.loss.mean, trial.loss.error))
    return f"{tuned.loss.title} {mean} ± {error} on {trial.loss.images} other images"
