"""The kernels in Triton's interpreter, in a process of their own.

The interpreter must be on before Triton is imported, and other tests may have imported it. Each
file of ``interpreted/`` is one test here; the first one runs them all.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.stem for path in FOLDER.glob("test_*.py"))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[ET.Element, str]:
    """What pytest reports of the whole folder, and what it printed."""
    written = tmp_path_factory.mktemp("kernels") / "report.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(FOLDER), f"--junitxml={written}", "-p", "no:xdist"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
    )
    assert written.exists(), done.stdout + done.stderr
    return ET.parse(written).getroot(), done.stdout


@pytest.mark.parametrize("file", FILES)
def test_kernels_in_the_interpreter(file: str, report: tuple[ET.Element, str]) -> None:
    root, printed = report
    cases = [c for c in root.iter("testcase") if c.get("classname", "").endswith(f".{file}")]
    assert len(cases) >= 5, printed
    bad = [c.get("name") for c in cases if any(n.tag != "properties" for n in c)]
    assert bad == [], printed
