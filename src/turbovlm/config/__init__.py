"""Frozen configurations that check themselves and round-trip through JSON."""

from __future__ import annotations

from turbovlm.config.base import Setting
from turbovlm.config.merge import Merge
from turbovlm.config.paper import Paper, RestorePreset
from turbovlm.config.restore import MODULES, MergeRestore
from turbovlm.config.visual_tokens import VisualTokens

__all__ = ["MODULES", "Merge", "MergeRestore", "Paper", "RestorePreset", "Setting", "VisualTokens"]
