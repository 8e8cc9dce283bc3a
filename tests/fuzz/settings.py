"""Random settings of every type, and damaged files of them: a value, or an error of turbovlm's."""

from __future__ import annotations

import json
import math
import random
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import transformers as hf

import turbovlm
from tests.fuzz.trials import claim
from tests.hosts.zoo import SIZES
from turbovlm import Merge, MergeRestore
from turbovlm.config import Setting
from turbovlm.errors import TurboError

NAMES = (
    "r", "ratio", "speedup", "method", "alpha", "min_tokens", "seed", "collapse", "inflection",
    "preset", "self_attention", "cross_attention", "feed_forward", "destinations", "cell", "metric",
    "plan", "restore", "proportional", "kind", "beta", "", "fusion", "schedule",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    0, 1, 4, 16, -1, 10**30, 0.0, 0.25, 0.5, 0.75, 1.0, 1.4, -0.5, math.nan, math.inf, 1e-300, True,
    False, None, "", "turbo", "redundancy", "semantics", "random", "grid", "key", "block", "linear",
    "\x00", "ü", (), (1, 2), [4, 4], [[1]], (0.5, 0.25), [None], {}, {"fusion": "S4"}, {"a": [1]},
    np.int64(4), np.float32(0.25), np.bool_(True), b"4", 4 + 0j, 2**63, 2**63 - 1,
    {"fusion": "S2", "metric": "query"}, [3, 3, 3, 3], object, float("1e308"),
)  # fmt: skip


def _fields(rng: random.Random) -> dict[str, Any]:
    fields = {rng.choice(NAMES): rng.choice(VALUES) for _ in range(rng.randint(0, 4))}
    if rng.random() < 0.6:  # often nearly right
        fields["r" if rng.random() < 0.5 else "ratio"] = rng.choice([4, 0.25, 0, [1, 2, 3, 4]])
    return fields


def _check(config: Setting) -> None:
    told = json.loads(json.dumps(config.to_dict()))
    claim(type(config).from_dict(told) == config, f"{config!r} does not come back from {told}")
    claim(bool(repr(config)), "no text")
    _ = config.rule  # type: ignore[attr-defined]


def settings(rng: random.Random) -> None:
    """Any keyword with any value makes a setting that round-trips, or a `TurboError`."""
    kind: Any = rng.choice([Merge, MergeRestore, Merge.paper])
    fields = _fields(rng)
    by_keyword = (kind is not Merge and kind is not MergeRestore) or rng.random() < 0.5
    try:
        config = kind(**fields) if by_keyword else kind.from_dict(fields)
    except TurboError:
        return
    except TypeError as error:
        # Python's own: a keyword that the function does not have, or misses
        claim(by_keyword and "argument" in str(error), f"{fields}: {error}")
        return
    _check(config)


def _damage(rng: random.Random, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(rng.randint(1, 6)):
        way = rng.choice(["cut", "flip", "insert", "double", "nest"])
        at = rng.randrange(len(data) + 1)
        if way == "cut":
            del data[at : at + rng.randint(1, 20)]
        elif way == "flip" and at < len(data):
            data[at] = rng.randrange(256)
        elif way == "insert":
            data[at:at] = rng.choice([b"[", b"}", b"null", b"NaN", b"1e999", b"\xff", b'"', b"-"])
        elif way == "double":
            data[at:at] = data[:at]
        elif way == "nest" and rng.random() < 0.1:
            data[at:at] = b"[" * 20000
    return bytes(data)


def files(rng: random.Random) -> None:
    """A damaged file, or a damaged setting stored with a model: a value or a `TurboError`."""
    good = rng.choice(
        [
            Merge(r=4),
            Merge(r=(1, 2, 3, 4), alpha=2.0),
            Merge.paper(4, fusion="S4", alpha=2.0, beta=0.9, gamma=2),
            MergeRestore(ratio=(0.5, 0.25), cell=(4, 4)),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "setting.json"
        good.save(path)
        path.write_bytes(_damage(rng, path.read_bytes()))
        with suppress(TurboError):
            _check(type(good).load(path))
    stored: Any = good.to_dict()
    for _ in range(rng.randint(1, 2)):
        stored[rng.choice([*stored, *NAMES])] = rng.choice(VALUES)
    odd = ("merge", 4, [4], [[]], {"kind": []})
    stored = rng.choice([stored, stored, [stored], [stored, stored], rng.choice(odd)])
    model: Any = hf.ViTModel(hf.ViTConfig(**SIZES)).eval()
    model.config.turbovlm = stored
    try:
        turbovlm.apply(model)
    except TurboError:
        left = [m for m in model.modules() if "turbo_site" in vars(m)]
        claim(not left, f"{stored!r}: refused, yet {len(left)} modules are patched")
        claim(model.config.turbovlm is stored, f"{stored!r}: refused, yet what is stored changed")
    else:
        turbovlm.remove(model)
        claim(model.config.turbovlm == stored, f"{stored!r}: not as it was stored")
