"""Random settings on small denoisers: shapes, `remove`, and the blocks of UNets by the oracle."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch

import turbovlm
from tests.fuzz.trials import claim
from tests.hosts import denoisers as zoo
from tests.plug.denoiser.test_block import check_blocks
from turbovlm import MergeRestore
from turbovlm.errors import TurboError


@functools.cache
def _made(index: int) -> zoo.Case:
    return zoo.CASES[index]()


def _setting(rng: random.Random) -> dict[str, Any]:
    method = rng.choice(["turbo", "turbo", "redundancy", "semantics", "random"])
    fields: dict[str, Any] = {"method": method, "proportional": rng.random() < 0.7}
    if method == "turbo" and rng.random() < 0.4:
        fields["alpha"] = rng.uniform(0, 20)
    preset: dict[str, str] = {}
    if rng.random() < 0.5:
        preset["destinations"] = rng.choice(["grid", "bipartite"])
        preset["metric"] = rng.choice(["sketch", "token", "key"])
        fields["plan"] = rng.choice(["block", "module"])
        preset["restore"] = rng.choice(["linear", "copy", "weighted"])
    fields["preset"] = preset
    if preset.get("destinations") != "bipartite":
        fields["cell"] = rng.choice([(2, 2), (1, 2), (3, 2), (4, 4)])
    return fields


def generation(rng: random.Random) -> None:
    """Any setting on any denoiser: shapes, finite, and `remove`, bit for bit."""
    index = rng.randrange(len(zoo.CASES))
    case, setting = _made(index), _setting(rng)
    ratios = [rng.uniform(0, 0.5) for _ in range(rng.randint(1, 3))]
    setting |= {"ratio": tuple(ratios) if len(ratios) > 1 else ratios[0]}
    for kind in ("self_attention", "cross_attention", "feed_forward"):
        if rng.random() < 0.2:
            setting[kind] = rng.choice([0.0, rng.uniform(0, 0.5)])
    setting |= {"min_tokens": rng.choice([0, 0, 100, 10**6]), "guidance": rng.random() < 0.3}
    setting["seed"] = rng.choice([None, rng.randrange(2**63)])
    config, time = MergeRestore.from_dict(setting), rng.uniform(1, 999 if index != 8 else 0.99)
    where = f"{case.name} {config}"
    plain = case.step(time=time)
    try:
        with turbovlm.applied(case.model, config):
            merged = case.step(time=time)
    except TurboError as error:
        claim(config.proportional and "proportional" in str(error), f"{where}: refused: {error}")
        return
    claim(merged.shape == plain.shape, f"{where}: shape {merged.shape}")
    claim(bool(torch.isfinite(merged).all()), f"{where}: not finite")
    claim(torch.equal(case.step(time=time), plain), f"{where}: remove does not restore")


def blocks(rng: random.Random) -> None:
    """Every block of a UNet equals the oracle, which is written out with loops."""
    setting = _setting(rng)
    if setting["method"] == "random":
        setting["method"] = "redundancy"
    setting["ratio"] = rng.uniform(0.05, 0.45)
    preset = setting.pop("preset")
    check_blocks({**setting, **preset}, rng.random() < 0.5)
