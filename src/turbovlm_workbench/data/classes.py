"""Labelled images, for classification."""

from __future__ import annotations

from collections import defaultdict
from hashlib import sha256
from pathlib import Path

from turbovlm.errors import InputError
from turbovlm_workbench.data.examples import Labelled
from turbovlm_workbench.data.images import find_images, read_labels

CLASS_FILES = ("classes.txt", "synsets.txt", "imagenet_synsets.txt", "LOC_synset_mapping.txt")
# of the 1000 synsets of ImageNet, sorted and separated by spaces
_IMAGENET = "791ce0333040dd249d13133f90d28ef0263ffc01e5de0afd85b3e32048d7d456"


def read_classification(data: Path, images: Path | None = None) -> list[Labelled]:
    """Read labelled images.

    - A CSV table of images and class numbers, see `turbovlm_workbench.data.images.read_labels`.
    - A folder with one subfolder a class. Which class is which number must be certain, as a wrong
      order looks like a bad model. So the numbers come from one of ``CLASS_FILES`` in the folder or
      next to it (line n, from 0, is or begins with a subfolder's name); else from the names, if
      these are all numbers; else the 1000 synsets of ImageNet are 0 to 999, sorted. Anything else
      is an error. Images come in turns, one of every class, so that the first few of them are of
      many classes.

    Args:
        data: the table or the folder.
        images: the folder that names in a table are relative to; None for the table's own.

    Returns:
        Images; the id is the path relative to the folder.

    Raises:
        InputError: for a table, folder or class that cannot be used.
    """
    if data.is_dir():
        if images is not None:
            raise InputError(f"{data} is the folder of the images already: leave --images out")
        return _folder(data)
    if not data.exists():
        raise InputError(f"{data} does not exist: give a CSV table, or a folder of classes")
    root = data.parent if images is None else images
    labels = read_labels(data, root).items()
    return [Labelled(_name(path, root.resolve()), path, label) for path, label in labels]


def _folder(root: Path) -> list[Labelled]:
    members: defaultdict[str, list[Path]] = defaultdict(list)
    for path in find_images(root):
        parts = path.relative_to(root).parts
        if len(parts) == 1:
            raise InputError(
                f"{path} is in no class: give a folder with one subfolder a class, or a CSV table"
            )
        members[parts[0]].append(path)
    numbers = _numbers(root, sorted(p.name for p in root.iterdir() if p.is_dir()))
    turns = [
        (turn, numbers[name], path)
        for name, paths in members.items()
        for turn, path in enumerate(paths)
    ]
    return [
        Labelled(path.relative_to(root).as_posix(), path, label) for _, label, path in sorted(turns)
    ]


def _numbers(root: Path, names: list[str]) -> dict[str, int]:
    """The class of every subfolder."""
    for file in (folder / name for folder in (root, root.parent) for name in CLASS_FILES):
        if file.is_file():
            return _listed(file, root, names)
    if all(name.isdecimal() for name in names):
        numbers = {name: int(name) for name in names}
        if len(set(numbers.values())) < len(names):
            raise InputError(f"two subfolders of {root} are the same number: join them")
        return numbers
    if sha256(" ".join(names).encode()).hexdigest() == _IMAGENET:
        return {name: number for number, name in enumerate(names)}
    raise InputError(
        f"cannot number the classes of {root}: its {len(names)} subfolders ({names[0]}, ...) are "
        "neither numbers nor the 1000 synsets of ImageNet: put a classes.txt into it, with one "
        "subfolder's name a line in the order of the model's classes"
    )


def _listed(file: Path, root: Path, names: list[str]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file} ({error}): give a text file in UTF-8") from error
    for number, line in enumerate(lines):
        where = f"{file}, line {number + 1}"
        if not line.strip():
            raise InputError(f"{where} is blank: the line is the number, so remove or fill it")
        name = line.strip() if line.strip() in names else line.split()[0]
        if name in numbers:
            raise InputError(f"{where} and line {numbers[name] + 1} are both {name!r}: keep one")
        numbers[name] = number
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise InputError(
            f"{file} does not name the subfolder {unknown[0]} of {root}: add it or move it away"
        )
    return numbers


def _name(path: Path, root: Path) -> str:
    # a table may lie elsewhere than its images
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
