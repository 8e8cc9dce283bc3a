"""The command line where its extra or the lab is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import turbovlm

SOURCE = Path(turbovlm.__file__).parents[1]
PACKAGES = Path(sysconfig.get_path("purelib"))


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` without site-packages (-S), so that only ``paths`` can be imported from."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    argv = [sys.executable, "-S", "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("module", ["turbovlm_workbench.cli", "turbovlm.__main__"])
def test_without_its_extra_the_command_line_names_the_command(module: str) -> None:
    done = run(f"from {module} import main; main(['models'])", SOURCE)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "pip install 'turbovlm[cli]'" in line


@pytest.mark.skipif((PACKAGES / "turbovlm_lab").is_dir(), reason="the lab is no editable install")
@pytest.mark.parametrize("words", [["demo"], ["bench", "lab:captioner", "--images", "."]])
def test_without_the_lab_its_models_name_the_command(words: list[str], tmp_path: Path) -> None:
    code = f"import os; os.chdir({str(tmp_path)!r})\n"
    if "bench" in words:
        code += "from PIL import Image; Image.new('RGB', (8, 8)).save('a.png')\n"
    code += f"from turbovlm_workbench.cli import main; main({words})"
    done = run(code, SOURCE, PACKAGES)
    assert done.returncode == 2
    assert "turbovlm-lab, which is not installed: pip install ./lab" in done.stderr


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("ray", ["run", "embed", "lab:retrieval", "--data", ".", "--out", "new"]),
        ("pyarrow", ["run", "embed", "lab:retrieval", "--data", ".", "--out", "new"]),
        ("faiss", ["search", ".", "--text", "a circle"]),
    ],
)
def test_without_their_extra_jobs_name_the_command(
    package: str, words: list[str], tmp_path: Path
) -> None:
    code = f"import os, sys; os.chdir({str(tmp_path)!r}); sys.modules[{package!r}] = None\n"
    code += f"from turbovlm_workbench.cli import main; main({words})"
    done = run(code, SOURCE, PACKAGES)
    assert done.returncode == 2
    assert f"this needs {package}, which is not installed" in done.stderr
    assert "pip install 'turbovlm[scale]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
