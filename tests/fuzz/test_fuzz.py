"""Half a minute of random trials; ``make fuzz`` runs an hour."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.run import KINDS, fuzz


@pytest.mark.slow
def test_no_trial_is_wrong_and_none_crashes() -> None:
    seed = int(os.environ.get("TURBOVLM_FUZZ_SEED", "0"))
    counts = fuzz(float(os.environ.get("TURBOVLM_FUZZ_SECONDS", "30")), seed)
    assert [report for count in counts.values() for report in count.reports] == []
    assert all(counts[kind].tried for kind in KINDS)
