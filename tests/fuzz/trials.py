"""One random trial of each kind; a trial raises `Wrong` where the library gives a wrong answer.

Any exception but a `TurboError` that the trial expects counts as a crash.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import turbovlm
from tests.fuzz.models import CASES, PADDED, Built, build
from tests.reference.literal import Setting, encode
from turbovlm import Merge
from turbovlm.errors import TurboError
from turbovlm.maths.schedule import lengths

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


class Wrong(AssertionError):
    """A value that differs from what it must be."""


def claim(true: bool, what: str) -> None:
    """Raise `Wrong` unless it is true."""
    if not true:
        raise Wrong(what)


def close(found: Tensor, expected: Tensor, what: str) -> None:
    """Raise `Wrong` unless the two are equal up to rounding."""
    claim(found.shape == expected.shape, f"{what}: {found.shape} is not {expected.shape}")
    worst = (found - expected).abs().max().item() if found.numel() else 0.0
    claim(torch.allclose(found, expected, **CLOSE), f"{what}: differs by {worst:.1e}")


def literal(rng: random.Random) -> None:
    """Against the slow reference: scores, weights, floors, the paper's preset, batches."""
    built = build(rng, rng.choice(CASES))
    r, method = rng.randint(1, 20), rng.choice(["turbo", "redundancy", "semantics"])
    floor = rng.choice([0, 0, built.tokens - rng.randint(1, 30)])
    fields: dict[str, Any] = {"r": r, "method": method, "min_tokens": floor}
    told = dict(fields)
    if rng.random() < 0.3 and built.real is None:
        fusion = rng.choice(["S1", "S2", "S3", "S4"]) if method == "turbo" else "S1"
        preset: dict[str, Any] = {"fusion": fusion, "metric": rng.choice(["key", "query"])}
        if fusion == "S4":
            preset |= {"beta": rng.uniform(0.5, 1), "gamma": rng.randint(1, 4)}
        if method == "turbo" and fusion != "S2":
            fields["alpha"] = told["alpha"] = rng.uniform(0, 10)
        config = Merge.paper(**fields, **preset)
        told |= preset | {"paper": True}
    else:
        if method == "turbo" and rng.random() < 0.5:
            fields["alpha"] = told["alpha"] = rng.uniform(0, 10)
        config = Merge(**fields)
    setting = Setting(**told, prefix=built.case.prefix, guide=built.case.guide)
    rotary = None if built.case.rotary is None else built.case.rotary(built.model, built.x)
    expected = encode(built.blocks, built.entering(), setting, rotary, built.real)
    with turbovlm.applied(built.model, config) as run:
        found = built.leaving()
        kept = run.trace.survivors()
    where = f"{built.case.name} {config}"
    for sample, (rows, at) in enumerate(expected):
        claim(kept.expand(len(found), -1)[sample, : len(at)].tolist() == at, f"{where}: survivors")
        close(found[sample, at], rows, where)


def random_merge(rng: random.Random, depth: int) -> Merge:
    """Any setting that means something."""
    method = rng.choice(["turbo", "turbo", "redundancy", "semantics", "random"])
    fields: dict[str, Any] = {"method": method}
    if method == "turbo" and rng.random() < 0.5:
        fields["alpha"] = rng.uniform(0, 50)
    if method == "random":
        fields["seed"] = rng.randrange(2**40)
    amount = rng.choice(["r", "list", "ratio", "speedup", "line"])
    if amount in ("r", "line"):
        fields["r"] = rng.randint(0, 40)
        if amount == "line":
            fields["inflection"] = rng.uniform(-1, 1)
    elif amount == "list":
        fields["r"] = tuple(rng.randint(0, 30) for _ in range(depth))
    elif amount == "ratio":
        fields["ratio"] = rng.uniform(0, 0.5)
    else:
        fields["speedup"] = rng.uniform(1, 3)
    if rng.random() < 0.3:
        fields["min_tokens"] = rng.randint(1, 70)
    return Merge(**fields)


def invariants(rng: random.Random) -> None:
    """Any setting: lengths, sizes, shapes, representatives, and `remove`, bit for bit."""
    built = build(rng, rng.choice(CASES))
    config = random_merge(rng, len(built.blocks))
    where = f"{built.case.name} {config}"
    host, left = built.run(), built.leaving()
    try:
        with turbovlm.applied(built.model, config) as run:
            merged, found, trace = built.run(), built.leaving(), run.trace
    except TurboError as error:
        claim(config.speedup is not None and "speedup" in str(error), f"{where}: refused: {error}")
        return
    claim(merged.shape == host.shape, f"{where}: shape {merged.shape}")
    claim(bool(torch.isfinite(merged).all()), f"{where}: not finite")
    claim(torch.equal(built.run(), host), f"{where}: remove does not restore")
    if config.speedup is None:
        expected = lengths(config.schedule, built.tokens, built.case.prefix, len(built.blocks))
        claim(trace.tokens == expected, f"{where}: lengths {trace.tokens} are not {expected}")
    if trace.sizes is None:
        claim(torch.equal(found, left), f"{where}: nothing merged, yet the result differs")
        return
    total = [built.tokens] * len(host) if built.real is None else built.real.sum(1).tolist()
    claim(trace.sizes.sum(1).tolist() == total, f"{where}: sizes sum to {trace.sizes.sum(1)}")
    owner, kept = trace.representative(), trace.survivors()
    for sample, y in enumerate(found):
        claim(
            owner[sample, kept[sample]].tolist() == list(range(kept.shape[1])),
            f"{where}: a survivor does not stand for itself",
        )
        claim(torch.equal(y[kept[sample]][owner[sample]], y), f"{where}: restored values")


def padding(rng: random.Random) -> None:
    """The answer to one input is the same alone and among any neighbours."""
    built = build(rng, rng.choice(PADDED), batch=3)
    while (config := random_merge(rng, len(built.blocks))).speedup is not None:
        pass
    real = torch.ones(3, built.tokens, dtype=torch.bool)
    for row in real:
        count = rng.randint(built.case.prefix + 2, built.tokens)
        row[count:] = False
        if built.holes:
            for place in rng.sample(range(built.case.prefix, count), (count - 2) // 4):
                row[place] = False
    real[:, : built.case.prefix + 2] = True
    with turbovlm.applied(built.model, config, record=False):
        together = built.masked(built.x, real)
        for i in range(3):
            alone = built.masked(built.x[i : i + 1], real[i : i + 1])
            close(alone[0][real[i]], together[i][real[i]], f"{built.case.name} {config} sample {i}")


class Machine:
    """A model under random operations, and what it must compute now."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.built: Built = build(rng, rng.choice(CASES))
        self.host = self.built.run()
        self.pure = copy.deepcopy(self.built.model)
        self.applied: Merge | None = None
        self.expected = self.host
        self.held: list[tuple[nn.Module, Any]] = []
        self.hooks: list[Any] = []
        self.done: list[str] = []

    def step(self) -> None:
        """One operation, and the check after it."""
        names = [n for n in dir(self) if n.startswith("do_")]
        name = self.rng.choice(names)
        self.done.append(name[3:])
        getattr(self, name)()
        found = self.built.run()
        claim(
            found.shape == self.expected.shape and torch.allclose(found, self.expected, **CLOSE),
            f"{self.built.case.name} {self.applied}: wrong after {' '.join(self.done)}",
        )

    def do_apply(self) -> None:
        config = Merge(r=self.rng.randint(0, 12), method=self.rng.choice(["turbo", "redundancy"]))
        before = self.applied
        try:
            turbovlm.apply(self.built.model, config)
        except TurboError:
            claim(
                bool(self.held) or (before is not None and before != config),
                f"refused after {' '.join(self.done)}",
            )
            return
        claim(before is None or before == config, f"applied twice: {' '.join(self.done)}")
        self.applied = config
        # what a fresh copy of the same model computes with the same setting
        self.expected = self.built.on(turbovlm.apply(copy.deepcopy(self.pure), config))

    def do_remove(self) -> None:
        try:
            turbovlm.remove(self.built.model)
        except TurboError:
            claim(self.applied is None, f"not removed after {' '.join(self.done)}")
            return
        claim(self.applied is not None, f"removed nothing: {' '.join(self.done)}")
        self.applied, self.expected = None, self.host

    def do_wrap(self) -> None:
        block = self.rng.choice(self.built.blocks)
        old = block.forward
        block.forward = lambda *args, **kwargs: old(*args, **kwargs)
        self.held.append((block, old))

    def do_unwrap(self) -> None:
        while self.held:  # the last one first
            block, old = self.held.pop()
            block.forward = old

    def do_hook(self) -> None:
        block = self.rng.choice(self.built.blocks)
        seen = self.built.tokens

        def look(_: nn.Module, __: Any, out: Tensor) -> None:
            claim(out.shape[1] == seen, f"a hook got {out.shape[1]} of {seen} tokens")

        self.hooks.append(block.register_forward_hook(look))

    def do_unhook(self) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def do_copy(self) -> None:
        if self.held or self.hooks:
            return
        try:
            twin = pickle.loads(pickle.dumps(self.built.model))
        except AttributeError:  # hooks that transformers leaves on for good
            twin = copy.deepcopy(self.built.model)
        self.built = self.built.around(twin)

    def do_raise(self) -> None:
        block = self.rng.choice(self.built.blocks)
        child = self.rng.choice(list(block.children()))

        class Stop(Exception):
            pass

        def stop(*_: Any) -> None:
            raise Stop

        handle = child.register_forward_pre_hook(stop)
        try:
            self.built.run()
        except Stop:
            pass
        finally:
            handle.remove()

    def do_record(self) -> None:
        if self.applied is None:
            return
        with turbovlm.recording(self.built.model) as run:
            self.built.run()
            tokens = run.trace.tokens
        expected = lengths(
            self.applied.schedule, self.built.tokens, self.built.case.prefix, len(self.built.blocks)
        )
        claim(tokens == expected, f"recorded {tokens}, not {expected}: {' '.join(self.done)}")

    def do_train(self) -> None:
        """Gradients with the whole model checkpointed and without."""
        model = self.built.model
        with torch.enable_grad():
            found = []
            for again in (False, True):
                model.zero_grad()
                x = self.built.x.clone()
                x = x.requires_grad_() if x.is_floating_point() else x
                y = (
                    checkpoint(lambda t: self.built.case.run(model, t), x, use_reentrant=False)
                    if again
                    else self.built.case.run(model, x)
                )
                y.pow(2).mean().backward()
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                found.append(torch.cat([g.flatten() for g in grads]))
        model.zero_grad()
        close(found[1], found[0], f"{self.built.case.name} {self.applied}: checkpointed gradients")

    def do_compile(self) -> None:
        if self.rng.random() < 0.9 or self.held or self.hooks:
            return  # it takes seconds
        torch._dynamo.reset()
        compiled: Callable[[Tensor], Tensor] = torch.compile(
            lambda x: self.built.case.run(self.built.model, x), backend="eager"
        )
        close(compiled(self.built.x), self.expected, f"{self.built.case.name} compiled")


def orders(rng: random.Random) -> None:
    """apply, remove, hooks, replaced forwards, copies, errors, training: in any order."""
    machine = Machine(rng)
    for _ in range(12):
        machine.step()


def threads(rng: random.Random) -> None:
    """Two inputs through one patched model at a time give what they give one after the other."""
    built = build(rng, rng.choice(CASES), batch=2)
    config = random_merge(rng, len(built.blocks))
    inputs = [built.case.inputs(batch=2, seed=rng.randrange(2**31)) for _ in range(2)]
    where = f"{built.case.name} {config}"
    try:
        with turbovlm.applied(built.model, config, record=False):
            one_by_one = [built.case.run(built.model, x) for x in inputs]
            with ThreadPoolExecutor(2) as pool:
                together = list(pool.map(partial(_unrecorded, built), inputs * 4))
    except TurboError as error:
        claim(config.speedup is not None, f"{where}: refused: {error}")
        return
    for i, found in enumerate(together):
        close(found, one_by_one[i % 2], f"{where}: in a thread")


@torch.no_grad()
def _unrecorded(built: Built, x: Tensor) -> Tensor:
    return built.case.run(built.model, x)
