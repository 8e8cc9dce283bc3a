"""Tasks and metrics: those of the workbench's own rooms, and what other packages add.

A module of ``tasks/`` or ``metrics/`` is found by being there. Another package names a module of
its own in its ``pyproject.toml``; it is imported before a command runs, so that scores, rows and
reducers that it registers are known there too::

    [project.entry-points."turbovlm_workbench"]
    mine = "my_package.my_task"
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from turbovlm.errors import ConfigError

GROUP = "turbovlm_workbench"
ROOMS = ("metrics", "tasks")


@cache
def load_extensions() -> None:
    """Import every module that may register a task or a metric, once.

    Raises:
        ConfigError: if another package announces a module that cannot be imported.
    """
    for room in ROOMS:
        package = importlib.import_module(f"turbovlm_workbench.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    load_packages()


@cache
def load_packages() -> None:
    """Import the modules that other packages announce, once.

    Raises:
        ConfigError: if one cannot be imported.
    """
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise ConfigError(
                f"the extension {entry.name} ({entry.value}) cannot be loaded: {error!r}: mend or "
                "remove the package that announces it"
            ) from error
