"""The methods that are compared: turbovlm by its settings, and tomesd, a peer on the package index.

One `MergeRestore` describes both, so that they spare the same modules as many tokens.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

import turbovlm
from turbovlm.config import MODULES, MergeRestore
from turbovlm.errors import ConfigError

TOMESD = "tomesd"
METHODS = ("turbo", "redundancy", "semantics", "random", TOMESD)
_PEER_KNOWS = {*MODULES, "kind", "ratio", "method", "min_tokens", "cell", "seed", "guidance"}


@dataclass(frozen=True)
class Candidate:
    """One method with one setting.

    Attributes:
        method: one of `METHODS`.
        config: what turbovlm runs with; tomesd is made to do likewise.
        label: the method and its setting in words, without the ratio.
    """

    method: str
    config: MergeRestore
    label: str

    def apply(self, model: Any, tokens: int) -> None:
        """Patch a UNet, or a pipeline with one, whose first level has ``tokens`` tokens."""
        if self.method == TOMESD:
            peer().apply_patch(model, **peer_options(self.config, tokens))
        else:
            turbovlm.apply(model, self.config)

    def remove(self, model: Any) -> None:
        """Undo `apply`."""
        if self.method == TOMESD:
            peer().remove_patch(model)
        else:
            turbovlm.remove(model)


def candidates(
    methods: Sequence[str],
    ratios: Sequence[float],
    settings: Sequence[dict[str, Any]],
    shared: Mapping[str, Any] = MappingProxyType({}),
) -> list[Candidate]:
    """Every setting with every method at every ratio; tomesd only where it knows the setting.

    Args:
        methods: of `METHODS`.
        ratios: of each.
        settings: further fields of `MergeRestore`, as `setting` reads them.
        shared: fields that all have and no label names.

    Raises:
        ConfigError: for a value that `MergeRestore` refuses.
    """
    found: list[Candidate] = []
    for fields in settings:
        for method in methods:
            told = {**fields, **fields.get("preset", {})}
            told.pop("preset", None)
            label = " ".join([method, *(f"{name}={value}" for name, value in told.items())])
            known = {**shared, **fields, "method": "redundancy" if method == TOMESD else method}
            for ratio in ratios:
                config = MergeRestore.from_dict({**known, "ratio": ratio})
                if method != TOMESD or _peer_can(config):
                    found.append(Candidate(method, config, label))
    return found


def add_setting(parser: argparse.ArgumentParser) -> None:
    """The option ``--setting`` of the scripts."""
    parser.add_argument(
        "--setting",
        type=setting,
        nargs="+",
        default=[{}],
        metavar="JSON",
        help="further fields of MergeRestore, e.g. '{\"seed\": null}'; {} are the defaults",
    )


def setting(text: str) -> dict[str, Any]:
    """A JSON object of `MergeRestore` fields, without method and ratio, from the command line."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"a setting is a JSON object, not {text!r}: {error}") from error
    if not isinstance(fields, dict) or {"method", "ratio"} & fields.keys():
        raise ConfigError(
            f"a setting is a JSON object without method and ratio, not {text!r}: they have options "
            "of their own"
        )
    return fields


def peer() -> ModuleType:
    """tomesd, which is MIT licensed; it is no dependency of turbovlm."""
    try:
        return importlib.import_module(TOMESD)
    except ImportError as error:
        raise SystemExit(
            "tomesd is not installed: pip install tomesd, or leave it out of --method"
        ) from error


def peer_options(config: MergeRestore, tokens: int) -> dict[str, Any]:
    """tomesd's arguments for the same modules, levels, cells and ratio.

    Args:
        config: a setting that tomesd knows.
        tokens: of the first level; each further level has a quarter.
    """
    levels = [side for side in (1, 2, 4, 8) if tokens // side**2 >= max(1, config.min_tokens)]
    used = [getattr(config, name) != 0 for name in MODULES]
    return {
        "ratio": config.ratio,
        "max_downsample": levels[-1],
        "sy": config.cell[0],
        "sx": config.cell[1],
        "use_rand": config.seed is not None,
        **dict(zip(("merge_attn", "merge_crossattn", "merge_mlp"), used, strict=True)),
    }


def _peer_can(config: MergeRestore) -> bool:
    modules = [getattr(config, name) for name in MODULES]
    same = all(value in (None, 0, config.ratio) for value in modules)
    return same and config.to_dict().keys() <= _PEER_KNOWS
