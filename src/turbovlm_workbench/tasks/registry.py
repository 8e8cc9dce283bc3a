"""The tasks by name, open to other packages: `register_task`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from turbovlm.errors import ConfigError, ModelError
from turbovlm_workbench.extensions import load_extensions
from turbovlm_workbench.load.loaded import LoadedModel
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.tasks.base import Task
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tasks.request import Request
from turbovlm_workbench.tasks.scored import ScoredTask

AnyTask = TypeVar("AnyTask", bound=type[Task])

_TASKS: dict[str, type[Task]] = {}


def register_task(task: AnyTask) -> AnyTask:
    """Add a task under its ``kind``: a decorator of its class.

    Raises:
        ConfigError: if that name is taken.
    """
    if task.kind in _TASKS:
        raise ConfigError(f"there is a task {task.kind} already: take another name")
    _TASKS[task.kind] = task
    return task


def scored_tasks() -> dict[str, type[ScoredTask]]:
    """The tasks of ``turbovlm eval`` by name."""
    load_extensions()
    return {name: task for name, task in sorted(_TASKS.items()) if issubclass(task, ScoredTask)}


def image_task(loaded: LoadedModel) -> ImageTask[Any]:
    """The task that compares a loaded model with itself on images.

    Raises:
        ModelError: if there is none for such a model.
    """
    load_extensions()
    for task in _TASKS.values():
        if issubclass(task, ImageTask) and isinstance(loaded, task.reads):
            return task(loaded)
    raise ModelError(
        f"no task runs a {type(loaded).__name__} on images alone: give a classifier, a captioner "
        "or an embedder"
    )


def load_task(
    name: str, weights: str | Path | None = None, *, beams: int | None = None
) -> ImageTask[Any]:
    """A model by name with the task that bench, sweep and tune run on it.

    Raises:
        TurboError: as `turbovlm_workbench.load.models.load_model`.
    """
    return image_task(load_model(name, weights, beams=beams))


def build_task(name: str, request: Request) -> ScoredTask:
    """The task called ``name`` with the data and the model of a request.

    Raises:
        ConfigError: for an unknown task, or an option that it does not have.
        InputError: for data that cannot be read, by line and field.
        ModelError: for a model that cannot be loaded, or does something else.
        MissingExtra: if a library is not installed.
    """
    tasks = scored_tasks()
    if name not in tasks:
        raise ConfigError(f"unknown task {name!r}: use one of {', '.join(tasks)}")
    task = tasks[name]
    if request.answers is not None and "answers" not in task.options:
        users = [other for other, kind in tasks.items() if "answers" in kind.options]
        raise ConfigError(f"--answers goes with the task {', '.join(users)}: leave it out")
    if request.weights is not None and "weights" not in task.options:
        raise ConfigError(f"--weights is not for {name}: a folder or hub id brings its own")
    return task.from_request(request)
