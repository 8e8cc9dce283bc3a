"""What the two distributions hold: the library's wheel is small, the weights are in the lab's."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def project(folder: Path) -> dict[str, list[str]]:
    with (folder / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def test_the_library_depends_on_torch_alone() -> None:
    assert [word.partition(">")[0] for word in project(ROOT)["dependencies"]] == ["torch"]


def test_the_lab_belongs_to_this_version() -> None:
    version = project(ROOT)["version"]
    assert project(ROOT / "lab")["version"] == version
    assert project(ROOT / "lab")["dependencies"] == [f"turbovlm[cli,hf]=={version}"]


@pytest.mark.slow
def test_the_wheel_of_the_library_is_under_a_megabyte(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir"]
    done = subprocess.run([*pip, str(tmp_path), str(ROOT)], capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("pip cannot fetch hatchling, which builds the wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("turbovlm-*.whl")
    assert wheel.stat().st_size < 2**20
    with zipfile.ZipFile(wheel) as file:
        parts = {name.split("/")[0] for name in file.namelist() if "dist-info" not in name}
        names = set(file.namelist())
    assert parts == {"turbovlm", "turbovlm_workbench"}
    # the templates of the report travel along
    assert "turbovlm_workbench/report/page.html.j2" in names
