"""Frozen configurations that check themselves and round-trip through JSON."""

from __future__ import annotations

from turbovlm.config.merge import Merge, Method, Metric
from turbovlm.config.restore import MODULES, MergeRestore

__all__ = ["MODULES", "Merge", "MergeRestore", "Method", "Metric"]
