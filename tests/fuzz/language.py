"""Random prompts with pictures, reduced: dropped tokens against hidden ones, neighbours, remove."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from typing import Any

from torch import nn

import turbovlm
from tests.fuzz.trials import claim, close
from tests.language import oracle
from tests.language.run import alone_of, patch_of, reduced, trace_of
from tests.language.zoo import CASES, Case
from turbovlm import VisualTokens
from turbovlm.errors import TurboError

WITH_NEWLINES = ("llava_next", "llava_onevision")
"""Hosts that mark the ends of rows by tokens, which all stay."""
FEWEST = 12
"""Tokens of the smallest image."""


@functools.cache
def _made(name: str) -> nn.Module:
    return next(case for case in CASES if case.name == name).build()


def _setting(rng: random.Random) -> VisualTokens:
    method = rng.choice(["turbo", "turbo", "turbo", "divprune", "norm", "uniform", "random"])
    fields: dict[str, Any] = {"method": method, "merge": rng.random() < 0.5}
    amount = rng.choice(["share", "share", "count", "coverage"])
    if amount == "share":
        fields["keep"] = rng.uniform(0.02, 1)
    elif amount == "count":
        fields["keep"] = rng.randint(1, 12)
    else:
        fields["coverage"] = rng.uniform(0.1, 1)
    if method == "turbo":
        fields["floor"] = rng.random() < 0.5
    if method == "random":
        fields["seed"] = rng.randrange(2**40)
    return VisualTokens(**fields)


def prompts(rng: random.Random) -> None:
    """Every kept token equals that of the whole prompt in which nobody sees the dropped ones."""
    case: Case = rng.choice(CASES)
    model: Any = copy.deepcopy(_made(case.name))
    try:
        setting = _setting(rng)
    except TurboError:
        return  # an option that the method ignores, or a method that knows no coverage
    where = f"{case.name} {setting}"
    inputs = case.inputs(1, 2, seed=rng.randrange(2**31))
    whole = model(**inputs).logits
    fields = {f.name: getattr(setting, f.name) for f in dataclasses.fields(setting)}
    reduced(model, **fields)
    try:
        short = model.model(**inputs).last_hidden_state
    except TurboError as error:
        known = "more tokens" in str(error) or "frames or tiles" in str(error)
        claim(isinstance(setting.keep, int) and known, f"{where}: {error}")
        return
    if patch_of(model).recorders[0].found() is None:  # the share rounds to all tokens
        most = FEWEST if isinstance(setting.keep, int) else 1 - 0.5 / FEWEST
        claim(setting.keep is None or setting.keep >= most, f"{where}: nothing was dropped")
        claim(bool((model(**inputs).logits == whole).all()), f"{where}: all kept, yet different")
        return
    trace = trace_of(model)
    for image in trace.images:
        tokens, kept = len(image.column), len(image.kept)
        claim(1 <= kept <= tokens, f"{where}: {kept} of {tokens}")
        if setting.keep is not None and case.name not in WITH_NEWLINES:
            claim(kept == setting.count(tokens), f"{where}: {kept} of {tokens} kept")
        claim(bool((image.owner[image.kept] == image.kept).all()), f"{where}: a kept one moved")
    logits = model(**inputs).logits[:, -1]
    for b, count in enumerate((1, 2)):
        alone = model(**alone_of(case, inputs, b, count)).logits[0, -1]
        close(alone, logits[b], f"{where}: sample {b} alone")
    turbovlm.remove(model)
    claim(bool((model(**inputs).logits == whole).all()), f"{where}: remove does not restore")
    expected = (oracle.shortened if case.recurrent else oracle.hidden_states)(model, inputs, trace)
    for row, rows in zip(short, expected, strict=True):
        close(row[-len(rows) :], rows, where)
