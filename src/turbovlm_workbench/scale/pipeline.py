"""The pipeline on Ray Data: read, batch, run on a pool of workers, write.

Ray Data streams, batches, restarts what was killed and holds back who is too fast. It is told to
leave a part in one piece, so that each part becomes one file.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError

from turbovlm.errors import ConfigError, TurboError
from turbovlm_workbench.scale.hush import STDERR, hushed
from turbovlm_workbench.scale.parts import LISTING, read_part, write_parts
from turbovlm_workbench.scale.source import PictureSource
from turbovlm_workbench.scale.worker import Employment, Worker

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # cards stay visible to this process
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of what is written past Python's streams
}
STORE = 256 * 2**20  # of shared memory for each worker and for reading, where Ray is started here
SMALL = 0.25  # of a core, for a task that reads or writes
TRIES = 3
AHEAD = 2  # parts that a worker has or waits for


@dataclass(frozen=True)
class Pool:
    """The workers.

    Args:
        workers: how many.
        batch: pictures that one is given at once.
        address: of a Ray cluster; None starts Ray on this machine.

    Raises:
        ConfigError: for numbers below 1.
    """

    workers: int = 1
    batch: int = 32
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")


@contextmanager
def ray_running(pool: Pool) -> Iterator[None]:
    """Ray, started here or reached at its address, and left at the end; what runs already is used.

    It prints nothing, writes its logs where Ray keeps them, and sends no usage statistics.

    Raises:
        ConfigError: if Ray does not start, or no cluster answers.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with redirect_stdout(sys.stderr):  # where Ray says that a process was killed
        if ray.is_initialized():  # by the program that calls this
            yield
            return
        with hushed(STDERR):
            _start(pool, quiet)
        try:
            yield
        finally:
            ray.shutdown()


def _start(pool: Pool, quiet: dict[str, Any]) -> None:
    here: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(_cores(), pool.workers) + 1,  # one for reading and writing
        "include_dashboard": False,
        "object_store_memory": STORE * (pool.workers + 1),
    }
    if pool.address is None:
        _start_here(here | quiet)
        return
    try:
        ray.init(address=pool.address, **quiet)
    except Exception as error:  # of several kinds
        raise ConfigError(
            f"no Ray cluster answers at --address {pool.address} ({_short(error)}): start one "
            "with ray start --head, or leave --address out to use this machine"
        ) from error


def _start_here(options: dict[str, Any]) -> None:
    """Start Ray, which gives its own processes 30 s: a busy machine may need a second try."""
    for left in reversed(range(TRIES)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if not left:
                raise ConfigError(
                    f"Ray does not start on this machine ({_short(error)}): free memory or "
                    "processors, or give the --address of a cluster"
                ) from error


def cluster_device() -> str:
    """Where workers of this cluster compute unless told otherwise; Ray is running."""
    return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def check_pool(pool: Pool, device: str) -> tuple[int, float]:
    """What each worker takes of the cluster: whole cores, and a share of an accelerator.

    Raises:
        ConfigError: if there are too few processors for so many workers; Ray would wait for more.
    """
    there = ray.cluster_resources()
    cores = int(there.get("CPU", 0)) - 1
    if pool.address is not None and cores < pool.workers:
        raise ConfigError(
            f"{pool.workers} workers need {pool.workers + 1} processors and the cluster has "
            f"{cores + 1}: use --workers {max(cores, 1)}, or add machines"
        )
    cards = 0 if device == "cpu" else there.get("GPU", 0)
    return max(1, cores // pool.workers), 1 / ceil(pool.workers / cards) if cards else 0


def run_parts(
    source: PictureSource, out: Path, todo: Sequence[tuple[int, int]], told: Employment, pool: Pool
) -> Iterator[dict[str, int]]:
    """Do parts and write them; Ray is running.

    Args:
        source: of the pictures.
        out: the job's folder.
        todo: number and pictures of each part.
        told: to every worker.
        pool: of workers.

    Yields:
        Number, pictures and bad ones of a part that is on disk, as they are done.

    Raises:
        ConfigError: as `check_pool`.
        TurboError: whatever a worker raised.
    """
    cores, card = check_pool(pool, told.device)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # a part stays in one piece
    pictures = ray.data.read_datasource(
        _Parts(partial(read_part, source, out / LISTING), todo),
        override_num_blocks=len(todo),
        num_cpus=SMALL,
    )
    done = pictures.map_batches(
        Worker,
        fn_constructor_args=(told,),
        batch_size=pool.batch,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pool.workers, max_tasks_in_flight_per_actor=AHEAD),
        num_cpus=cores,
        num_gpus=card,
    )
    written = done.map_batches(
        partial(write_parts, out), batch_size=None, batch_format="pyarrow", num_cpus=SMALL
    )
    try:
        yield from written.iter_rows()
    except RayError as error:
        raise _cause(error) from error


class _Parts(Datasource):
    """One read task, and one block, for each part."""

    def __init__(
        self, read: Callable[[int], Iterator[pa.Table]], todo: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__()
        self._read, self._todo = read, todo

    def get_name(self) -> str:
        return "Pictures"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *more: Any, **others: Any) -> list[ReadTask]:
        return [
            ReadTask(
                partial(self._read, number),
                BlockMetadata(num_rows=count, size_bytes=None, exec_stats=None, input_files=None),
            )
            for number, count in self._todo
        ]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cause(error: BaseException) -> BaseException:
    """The error of ours in a chain of Ray's, or Ray's."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, TurboError):
        found = getattr(found, "cause", None) or found.__cause__
    return error if found is None else found


def _short(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
