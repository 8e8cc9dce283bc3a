"""The house rules that a machine can check: floors, exports, lean imports, file sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import turbovlm
import turbovlm_lab
import turbovlm_workbench
from turbovlm import errors

SOURCE = Path(turbovlm.__file__).parent
WORKBENCH = Path(turbovlm_workbench.__file__).parent
LAB = Path(turbovlm_lab.__file__).parent
# from the ground up; a floor may import its own and those before it. Rooms of ``plug`` beside one
# another (encoder, denoiser, language) share what lies below them, and nothing else.
LIBRARY_FLOORS = [
    {"errors", "notebook"},
    {"maths"},
    {"config"},
    {"kernels"},
    {"plug"},
    {"plug.encoder"},
    {"plug.denoiser"},
    {"plug.language"},
    {"hosts"},
    {"reducers"},
    {"api"},
    {"measure"},
]
ROOMS = {"plug.encoder", "plug.denoiser", "plug.language"}
WORKBENCH_FLOORS = [
    {"checkpoint", "draws", "extensions", "settings"},
    {"data", "metrics"},
    {"paper"},
    {"load"},
    {"generation"},
    {"tasks"},
    {"run"},
    {"scale"},
    {"compare"},
    {"analyze", "studies"},
    {"tune"},
    {"demo"},
    {"report"},
    {"cli"},
]
LAB_FLOORS = [
    {"scenes", "grammar", "options", "lettering"},
    {"kinds"},
    {"questions", "pairs"},
    {"captioner"},
    {"data", "heads", "looking", "painter", "vlm"},
    {"export", "evaluate", "lessons", "reading", "seeing", "telling"},
    {"train", "train_heads", "train_vlm"},
    {"train_painter"},
]
HOUSES = [(SOURCE, LIBRARY_FLOORS), (WORKBENCH, WORKBENCH_FLOORS), (LAB, LAB_FLOORS)]


def modules(path: Path) -> set[str]:
    """Dotted names of what a file imports, with the names that are taken from them."""
    return _imported(ast.walk(ast.parse(path.read_text())))


def loaded(path: Path) -> set[str]:
    """The same without what functions import: that loads later."""
    return _imported(ast.parse(path.read_text()).body)


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def room_of(dotted: str) -> str:
    """The room that a name below a package belongs to."""
    first = ".".join(dotted.split(".")[:2])
    return first if first in ROOMS else dotted.split(".")[0]


def packages(path: Path) -> set[str]:
    """Names of the packages that a file imports."""
    return {name.split(".")[0] for name in modules(path)}


@pytest.mark.parametrize(("root", "floors"), HOUSES, ids=lambda value: getattr(value, "name", ""))
def test_imports_point_down_only(root: Path, floors: list[set[str]]) -> None:
    level = {name: number for number, names in enumerate(floors) for name in names}
    wrong = []
    for path in root.rglob("*.py"):
        dotted = ".".join(path.relative_to(root).with_suffix("").parts)
        room = room_of(dotted)
        if room in ("__init__", "__main__"):
            continue
        assert room in level, f"{room} has no floor: add it to the plan"
        own = (
            n.removeprefix(f"{root.name}.") for n in loaded(path) if n.startswith(root.name + ".")
        )
        for other in {room_of(name) for name in own} & set(level):
            beside = room in ROOMS and other in ROOMS and other != room
            if beside or level[other] > level[room]:
                wrong.append(f"{dotted} -> {other}")
    assert wrong == []


def test_the_library_knows_neither_workbench_nor_lab() -> None:
    above = {"turbovlm_workbench", "turbovlm_lab"}
    # ``python -m turbovlm`` is the command line
    files = [p for p in SOURCE.rglob("*.py") if p.name != "__main__.py"]
    assert [p.name for p in files if packages(p) & above] == []


def test_the_workbench_reaches_for_the_lab_in_one_place_and_its_demonstrations() -> None:
    found = [p for p in WORKBENCH.rglob("*.py") if "turbovlm_lab" in packages(p)]
    assert {p.relative_to(WORKBENCH).as_posix() for p in found} == {
        "load/lab.py",
        "demo/captioner.py",
        "demo/painter.py",
        "demo/vlm.py",
    }


def test_the_lab_knows_the_models_of_the_paper_only() -> None:
    wrong = []
    for path in LAB.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("turbovlm_w"):
                wrong += [node.module] if node.module != "turbovlm_workbench.paper.nlvr" else []
    assert wrong == []


def test_the_library_needs_torch_only() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "turbovlm", "turbovlm_workbench"}
    for path in SOURCE.rglob("*.py"):
        kernel = path.parent == SOURCE / "kernels" / "triton"  # imported where it is launched only
        assert packages(path) <= allowed | ({"triton"} if kernel else set()), path.name


def test_the_library_imports_where_only_torch_is_installed() -> None:
    code = (
        "import sys\n"
        "for name in 'numpy PIL safetensors rich typer transformers timm'.split():\n"
        "    sys.modules[name] = None\n"  # an import of it fails, as if it were not installed
        "import importlib, pkgutil, turbovlm\n"
        "found = [m.name for m in pkgutil.walk_packages(turbovlm.__path__, 'turbovlm.')]\n"
        "for name in found:\n"
        "    if not name.endswith('__main__'):\n"
        "        importlib.import_module(name)\n"
        "for name in turbovlm.__all__:\n"
        "    getattr(turbovlm, name)\n"
        "print(len(found), [m for m in sys.modules if m.startswith('turbovlm_')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    number, _, above = done.stdout.strip().partition(" ")
    assert int(number) > 30
    assert above == "[]"


def test_maths_knows_no_host() -> None:
    standard = {"__future__", "collections", "contextlib", "dataclasses", "fractions", "functools"}
    standard |= {"math", "typing"}
    allowed = {"torch", "turbovlm", *standard}
    for path in (SOURCE / "maths").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed, path.name
            elif isinstance(node, ast.Import):
                assert all(a.name.split(".")[0] in allowed for a in node.names), path.name


def test_exports_are_pinned() -> None:
    assert turbovlm.__all__ == [
        "Denoiser",
        "Merge",
        "MergeRestore",
        "Row",
        "TurboError",
        "VisualTokens",
        "applied",
        "apply",
        "flops",
        "fuse_attention",
        "recording",
        "register",
        "register_reducer",
        "remove",
        "score",
        "selector",
        "throughput",
        "unfuse_attention",
        "use_kernels",
    ]
    for name in turbovlm.__all__:
        assert getattr(turbovlm, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = turbovlm.nothing


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import turbovlm", ["torch", "numpy", "transformers", "timm"]),
        ("import turbovlm; turbovlm.apply", ["transformers", "timm", "torchvision", "matplotlib"]),
    ],
)
def test_imports_stay_lean(statement: str, forbidden: list[str]) -> None:
    code = f"import sys; {statement}; print(*[m for m in {forbidden} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    named = [
        n
        for n, v in vars(errors).items()
        if isinstance(v, type) and v.__module__ == errors.__name__
    ]
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in named)


def test_a_missing_extra_names_the_command() -> None:
    with pytest.raises(errors.MissingExtra, match=r"pip install 'turbovlm\[hf\]'"):
        errors.require("surely_not_installed.models", "hf")


def test_files_stay_small() -> None:
    files = [p for root in (SOURCE, WORKBENCH, LAB) for p in root.rglob("*.py")]
    long = [p.name for p in files if len(p.read_text().splitlines()) > 400]
    assert long == []


# A command line of its own: ``python -m MODULE``.
COMMAND_LINE = {"main"}


MIRRORS = {"_fused", "_packed", "_plan", "_"}
"""Functions with the signature of one of torch's, and operators that are registered with torch."""


def test_functions_take_at_most_six_parameters() -> None:
    """Beside self; a command's parameters are its options."""
    found: list[str] = []
    for path in (p for root in (SOURCE, WORKBENCH, LAB) for p in root.rglob("*.py")):
        if path.parent.name in ("cli", "triton"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name not in MIRRORS:
                every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                if len([a for a in every if a.arg not in ("self", "cls")]) > 6:
                    found.append(f"{path.name}:{node.lineno} {node.name}")
    assert found == []


def test_no_two_public_names_are_the_same() -> None:
    found: dict[str, list[str]] = {}
    for root in (SOURCE, WORKBENCH, LAB):
        for path in root.rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                    place = path.relative_to(root.parent).as_posix()
                    found.setdefault(node.name, []).append(place)
    twice = {name: where for name, where in found.items() if len(where) > 1}
    assert {k: v for k, v in twice.items() if k not in COMMAND_LINE} == {}
