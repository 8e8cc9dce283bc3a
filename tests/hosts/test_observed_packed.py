"""What `recording(observe=...)` shows of towers that pack images: each image as a sample."""

from __future__ import annotations

import pytest
import torch

import turbovlm
from tests.hosts.packed import MERGED, QWEN25, Packed, run
from tests.hosts.test_packed import close, frames, literal, outputs, same
from tests.reference.literal import Setting
from turbovlm import Merge
from turbovlm.maths.merge import merge
from turbovlm.plug.encoder.trace import BlockRecord

R = 5
each_case = pytest.mark.parametrize("case", MERGED, ids=lambda c: c.name)


def records_of(case: Packed, setting: Merge) -> list[BlockRecord]:
    """What the blocks show; observing must not change what comes out."""
    model, records = case.build(), []
    host = outputs(model, case)
    with turbovlm.applied(model, setting, record=False):
        plain = outputs(model, case)
        with turbovlm.recording(model, observe=records.append):
            observed = outputs(model, case)
        seen = len(records)
        outputs(model, case)
    assert len(records) == seen  # it ends with the context
    if setting.r == 0:
        close(observed, host)
    else:
        assert same(observed, plain)
        assert not torch.allclose(observed[0], host[0], atol=1e-3)
    return records


@each_case
@torch.no_grad()
def test_every_block_shows_the_images_of_the_reference(case: Packed) -> None:
    # a score that reads no A: the guide is shown all the same
    setting = Setting(r=R, prefix=0, guide="mean", method="redundancy")
    expected = literal(case.build(), case, setting)
    records = records_of(case, Merge(r=R, method="redundancy"))
    assert [record.block for record in records] == list(range(len(expected[0][3])))
    for layer, record in enumerate(records):
        assert record.plan is not None
        assert (len(record.tokens), record.prefix_tokens) == (len(frames(case)), 0)
        for image, (_, _, _, noted) in enumerate(expected):
            tokens, value, size = noted[layer]
            n = len(tokens)
            torch.testing.assert_close(record.tokens[image, :n], tokens, atol=5e-5, rtol=1e-4)
            torch.testing.assert_close(record.value[image, :n], value, atol=2e-6, rtol=1e-4)
            assert record.size is not None  # images of other sizes are beside it
            torch.testing.assert_close(record.size[image, :n], size)
            assert not record.size[image, n:].any()
            assert not record.value[image, n:].any()
            assert int((record.size[image].gather(0, record.plan.source[image]) > 0).sum()) == R
            if layer + 1 < len(records):  # the plan leaves what the next block gets
                left = merge(record.tokens, record.size, record.plan)[1][image]
                torch.testing.assert_close(left[left > 0], noted[layer + 1][2])


@each_case
@torch.no_grad()
def test_observing_an_unmerged_tower_changes_nothing_but_rounding(case: Packed) -> None:
    records = records_of(case, Merge(r=0))
    assert len(records) == 4
    assert all(record.plan is None for record in records)
    sums = torch.stack([record.value.sum(1) for record in records])
    torch.testing.assert_close(sums, torch.ones_like(sums))


@torch.no_grad()
def test_images_that_lose_different_numbers_of_tokens() -> None:
    """Padding fills up the plans of those that lose fewer; nothing real is in it."""
    records = records_of(QWEN25, Merge(ratio=0.3))
    counts = torch.tensor(frames(QWEN25))
    for record in records:
        plan = record.plan
        assert record.size is not None
        assert plan is not None
        lost = (record.size.gather(1, plan.source) > 0).sum(1)
        assert lost.max() > lost.min() > 0
        assert ((record.size > 0).sum(1) == counts).all()
        torch.testing.assert_close(record.size.sum(1), torch.tensor(frames(QWEN25)).float())
        merged, size = merge(record.tokens, record.size, plan)
        assert ((size > 0).sum(1) == counts - lost).all()
        assert merged.shape[1] == record.tokens.shape[1] - plan.source.shape[1]
        counts = counts - lost


@torch.no_grad()
def test_one_image_needs_no_padding() -> None:
    model, records = QWEN25.build(), []
    with (
        turbovlm.applied(model, Merge(r=0), record=False),
        turbovlm.recording(model, observe=records.append),
    ):
        run(model, *QWEN25.alone(1))
    assert all(record.size is None and record.tokens.shape[:2] == (1, 60) for record in records)
