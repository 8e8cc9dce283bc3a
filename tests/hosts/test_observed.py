"""What `recording(observe=...)` shows of every block, against the literal reference."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import turbovlm
from tests.hosts.test_rows import blocks_of, each_case, tokens_in
from tests.hosts.zoo import TIMM, Case, pixels, wild
from tests.reference.literal import Setting, merge_step, recorded
from tests.reference.parts import Parts
from turbovlm import Merge, errors
from turbovlm.plug.encoder.trace import BlockRecord

R = 4


def literal(case: Case, model: torch.nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of the first sample, block by block: tokens after the attention, A, and sizes."""
    setting = Setting(r=R, prefix=case.prefix, guide=case.guide, method="redundancy")
    rotary = None if case.rotary is None else case.rotary(model, case.inputs())
    at = list(range(x.shape[1]))
    if case.real is not None:
        at = [t for t in at if case.real[0, t]]
    y, size, found = x[0][at], torch.ones(len(at)), []
    for index, block in enumerate(blocks_of(model)):
        parts = Parts(block)
        table = None if rotary is None else rotary[index]
        attention, seen = recorded(parts, size, setting, table, at)
        y = parts.attention_branch(y, attention)
        found.append((y, seen[0].value, size))
        y, size, kept = merge_step(y, size, seen[0].key, seen[0].value, setting, index)
        at = [at[t] for t in kept]
        y = parts.mlp_branch(y)
    return found


@each_case
@torch.no_grad()
def test_tokens_and_guide_of_every_block_equal_the_reference(case: Case) -> None:
    model, x = case.build(), case.inputs()
    expected = literal(case, model, tokens_in(case, model, x))
    records: list[BlockRecord] = []
    # a score that reads no A: the guide is shown all the same
    with turbovlm.applied(model, Merge(r=R, method="redundancy"), record=False):
        plain = case.run(model, x)
        with turbovlm.recording(model, observe=records.append):
            observed = case.run(model, x)
    assert torch.equal(plain, observed)
    assert [r.block for r in records] == list(range(len(expected)))
    for record, (tokens, value, size) in zip(records, expected, strict=True):
        real = len(tokens)
        assert record.prefix_tokens == case.prefix
        torch.testing.assert_close(record.tokens[0, :real], tokens, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(record.value[0, :real], value, atol=2e-6, rtol=1e-4)
        if record.size is not None:
            torch.testing.assert_close(record.size[0, :real], size)
            assert not record.size[0, real:].any()  # padding
        assert record.plan is not None


@each_case
@torch.no_grad()
def test_observing_an_unmerged_model_changes_nothing_but_rounding(case: Case) -> None:
    model, x = case.build(), case.inputs()
    expected = case.run(model, x)
    records: list[BlockRecord] = []
    with turbovlm.applied(model, Merge(r=0), record=False):
        with turbovlm.recording(model, observe=records.append) as recorded:
            torch.testing.assert_close(case.run(model, x), expected, atol=1e-5, rtol=1e-5)
        seen = len(records)
        case.run(model, x)
        assert len(records) == seen  # it ends with the context
    assert seen == len(recorded.trace.plans)
    assert all(plan is None for plan in recorded.trace.plans)
    assert all(record.plan is None for record in records)


@torch.no_grad()
def test_what_cannot_be_observed_is_named() -> None:
    model = wild(VisionTransformer(**TIMM))
    turbovlm.apply(model, Merge(r=2))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with (
        turbovlm.recording(model, observe=print),
        pytest.raises(Exception, match="observe the model before it is compiled"),
    ):
        compiled(pixels())
    with (
        pytest.raises(errors.NotApplied, match="not patched"),
        turbovlm.recording(torch.nn.Linear(2, 2), observe=print),
    ):
        pass
