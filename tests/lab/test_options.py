"""Numbers on the command lines of the lab, and where it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import turbovlm_lab
from turbovlm_lab import train, train_heads, train_painter


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (train.main, ["--minutes", "-1"]),
        (train.main, ["--minutes", "nan"]),
        (train.main, ["--steps", "0"]),
        (train.main, ["--processes", "0.5"]),
        (train.main, ["--seed", "100"]),
        (train_heads.main, ["vqa", "--minutes", "0"]),
        (train_heads.main, ["vqa", "--rate", "-1"]),
        (train_painter.main, ["--autoencoder-minutes", "inf"]),
    ],
)
def test_numbers_out_of_range_end_before_the_run(
    main: Callable[[list[str]], None], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2
    assert f"argument {words[-2]}: {words[-1]}" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize(
    "plan",
    [train.CaptionerTraining(), train_heads.HeadTraining("vqa"), train_painter.PainterTraining()],
)
def test_training_writes_outside_the_package_by_default(plan: Any) -> None:
    package = Path(turbovlm_lab.__file__).parent
    assert not plan.out.is_absolute()
    assert not (Path.cwd() / plan.out).is_relative_to(package)
