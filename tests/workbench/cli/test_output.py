"""Results that reach the reader: full disks, closed pipes, ASCII terminals, hostile names."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workbench import build
from tests.workbench.cli.test_commands import turbovlm_runs
from turbovlm.errors import InputError
from turbovlm_workbench.cli.output import check_outputs, check_writable, deliver, write_file
from turbovlm_workbench.cli.terminal import visible


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    build.photos(folder / "photos", 3)
    build.timm_weights(folder / "tiny.safetensors")
    return folder


def bench(place: Path, *more: object) -> list[bytes]:
    words = ["bench", f"timm:{build.TINY}", "--weights", place / "tiny.safetensors"]
    words += ["--r", 8, "--batch", 2, "--rounds", 2, "--device", "cpu", *more]
    code = "from turbovlm_workbench.cli import main; main()"
    return [os.fsencode(str(word)) for word in [sys.executable, "-c", code, *words]]


def test_a_full_stdout_loses_neither_the_file_nor_the_table(place: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            bench(place, "--images", place / "photos", "--json", place / "full.json"),
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert "turbo r=8" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot write to stdout (No space left on device)")
    assert "Traceback" not in done.stderr
    assert json.loads((place / "full.json").read_text())["rows"][1]["name"] == "turbo r=8"


def test_a_reader_that_leaves_is_no_error(place: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            bench(place, "--images", place / "photos", "--json", place / "closed.json"),
            stdout=closed, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 141
    assert "error" not in done.stderr.lower()
    assert (place / "closed.json").exists()


def test_help_without_a_reader_is_no_answer() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "from turbovlm_workbench.cli import main; main(['bench', '--help'])"
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run([sys.executable, "-c", code], stdout=closed, stderr=subprocess.PIPE)
    assert done.returncode == 141
    assert b"Error" not in done.stderr


def test_an_ascii_terminal_and_names_that_are_no_utf8(place: Path) -> None:
    folder = os.fsencode(place) + b"/caf\xe9 \x1b[2J[bold]"
    if not os.path.isdir(folder):
        os.rename(build.photos(place / "other", 3), folder)
    os.symlink(b"nowhere", folder + b"/\xff.png")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    words = bench(place, "--json", place / "out.json", "--images")
    done = subprocess.run([*words, folder], capture_output=True, env=environment)
    assert done.returncode == 2
    assert rb"caf\udce9 \x1b[2J[bold]/\udcff.png (" in done.stderr.splitlines()[-1]
    os.unlink(folder + b"/\xff.png")
    done = subprocess.run([*words, folder], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"+- " in done.stdout
    assert done.stdout.isascii()


def test_markup_in_a_models_name_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(capsys, "check", "timm:[/bold]\x1b[2J")
    assert (code, out) == (2, "")
    assert r"timm has no model '[/bold]\x1b[2J'" in err.splitlines()[-1]
    assert "\x1b[2J" not in err


def test_an_unexpected_error_has_a_code_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("turbovlm_workbench.load.skeleton.outline", fail)
    code, _, err = turbovlm_runs(capsys, "check", "timm:test_vit")
    assert code == 70
    assert "ZeroDivisionError" in err
    assert err.splitlines()[-1].startswith("error: unexpected ZeroDivisionError")


def test_control_characters_are_shown() -> None:
    assert visible("a\x1b]0;title\x07\r\u202e\x9bb\n\tü→") == (
        "a\\x1b]0;title\\x07\\r\\u202e\\x9bb\n\tü→"
    )


def test_every_step_is_done_whatever_fails() -> None:
    did: list[str] = []

    def fail(error: Exception) -> Callable[[], None]:
        def step() -> None:
            did.append(type(error).__name__)
            raise error

        return step

    with pytest.raises(InputError, match=r"not all results could be written \(disk\)"):
        deliver(fail(BrokenPipeError()), fail(OSError("disk")), None, lambda: did.append("last"))
    assert did == ["BrokenPipeError", "OSError", "last"]
    with pytest.raises(BrokenPipeError):
        deliver(fail(BrokenPipeError()), lambda: did.append("after"))
    with pytest.raises(ZeroDivisionError):
        deliver(fail(ZeroDivisionError()), lambda: did.append("end"))
    assert did[-1] == "end"


def test_a_link_to_nothing_stays_a_link(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "target.json")
    check_writable(link, "--json")
    assert link.is_symlink()
    assert not (tmp_path / "target.json").exists()
    write_file(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "target.json").read_text() == "new"


def test_two_results_do_not_share_a_file(tmp_path: Path) -> None:
    one, link = tmp_path / "one", tmp_path / "link"
    link.symlink_to(one)
    check_outputs({"--json": one, "--html": tmp_path / "two", "--plot": None})
    for other in (one, link, tmp_path / "." / "one"):
        with pytest.raises(InputError, match="--json and --html name one file"):
            check_outputs({"--json": one, "--html": other})
    assert not one.exists()


def test_a_file_is_written_whole_or_left(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_file(path, "old")
    path.chmod(0o640)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # as a full disk, for this test
    try:
        with pytest.raises(InputError, match=r"cannot write .*out\.json \(File too large\)"):
            write_file(path, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]
    write_file(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o640)
    write_file(Path("/dev/null"), "gone")
