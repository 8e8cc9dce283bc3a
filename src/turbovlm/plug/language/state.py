"""What a patched vision-language model remembers: the setting, and the running forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from turbovlm.config.visual_tokens import VisualTokens
from turbovlm.plug.language.row import LanguageRow
from turbovlm.plug.state import Patch


@dataclass
class LanguageCall:
    """One forward of the outer model.

    Attributes:
        ids: ``(B, N)`` input ids.
        mask: ``(B, past + N)`` with 0 for padding; None where it was given in another form.
        features: modality to the projected features of its images, as the host has them.
    """

    ids: Tensor
    mask: Tensor | None = None
    features: dict[str, Any] = field(default_factory=dict)


class LanguagePatch(Patch[VisualTokens, LanguageCall, None]):
    """One patched model.

    Args:
        row: what is known of it.
        config: which visual tokens stay.
        tokens: modality to the id of its placeholder in the prompt.
    """

    def __init__(self, row: LanguageRow, config: VisualTokens, tokens: Mapping[str, int]) -> None:
        super().__init__(config)
        self.row, self.tokens = row, dict(tokens)

    @contextmanager
    def running(self, call: LanguageCall | None) -> Iterator[None]:
        """Make ``call`` this thread's own, in compiled code too."""
        before = self.current()
        self._threads.call = call
        try:
            yield
        finally:
            self._threads.call = before

    def current(self) -> LanguageCall | None:
        """The forward of the outer model that this thread is running."""
        return getattr(self._threads, "call", None)


@dataclass(frozen=True)
class LanguageSite:
    """Where a swapped part of the model stands."""

    patch: LanguagePatch
    host: type[nn.Module]
    names: tuple[str, ...]
