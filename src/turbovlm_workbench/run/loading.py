"""Examples loaded ahead of the model, in threads.

Decoding and resizing leave Python's lock, so that threads do what processes would; and they need
neither memory to share nor examples that can be pickled, which makes them the same on every
system and with every start method.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from turbovlm.errors import InputError
from turbovlm_workbench.data.content import content_digest
from turbovlm_workbench.tasks.scored import Stage


@dataclass(frozen=True)
class Loaded:
    """One example of a stage.

    Attributes:
        index: its number in the stage.
        read: digest of the files that it was loaded from; "" where there are none.
        value: what ``Stage.load`` gave; None where it could not be loaded.
        broken: why it could not.
    """

    index: int
    read: str
    value: Any = None
    broken: str | None = None


def load_batches(
    stage: Stage, todo: Sequence[int], batch: int, workers: int
) -> Iterator[tuple[Loaded, ...]]:
    """The examples ``todo`` in order, in batches; with workers, up to two batches ahead."""
    one_by_one = (
        _ahead(stage, todo, workers, 2 * batch + workers)
        if workers
        else (_load(stage, index) for index in todo)
    )
    while some := tuple(islice(one_by_one, batch)):
        yield some


def _ahead(stage: Stage, todo: Sequence[int], workers: int, most: int) -> Iterator[Loaded]:
    waiting: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in todo:
                waiting.append(pool.submit(_load, stage, index))
                if len(waiting) == most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # an error elsewhere waits for no more than what is being loaded
            for future in waiting:
                future.cancel()


def _load(stage: Stage, index: int) -> Loaded:
    files = stage.files(index)
    read = content_digest(files) if files else ""
    try:
        return Loaded(index, read, stage.load(index))
    except InputError as error:
        return Loaded(index, read, broken=str(error))
