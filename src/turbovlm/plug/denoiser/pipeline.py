"""The class mixed in front of a pipeline, so that its denoisers need not guess at guidance."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from turbovlm.plug.denoiser.run import PipelineRun
from turbovlm.plug.denoiser.state import DenoiserPatch
from turbovlm.plug.names import bind
from turbovlm.plug.reducer import parts_of
from turbovlm.plug.swap import patched, site_of


@dataclass
class PipelineSite:
    """Where a pipeline stands: a patch of one of its denoisers, and what its call takes.

    Attributes:
        run: the call that is running.
    """

    patch: DenoiserPatch
    host: type[Any]
    names: tuple[str, ...]
    run: PipelineRun | None = None


class TurboPipeline:
    """A pipeline that tells the denoisers in it that it runs, and whether it guides."""

    turbo_site: PipelineSite

    @property
    def do_classifier_free_guidance(self) -> bool:
        """The pipeline's own, which it asks before each step."""
        answer = super().do_classifier_free_guidance  # type: ignore[misc]
        site = site_of(self)
        if site is not None and site.run is not None:
            site.run.guidance = bool(answer)
        return answer

    def turbo_enter(
        self,
        name: str,  # __call__, the one entry
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """The pipeline's own call."""
        site = self.turbo_site
        before = site.run
        site.run = PipelineRun.of(bind(site.names, args, kwargs))
        with ExitStack() as stack:
            stack.callback(setattr, site, "run", before)
            for patch in patches_of(self):
                patch.owners.add(self)  # a copy of a pipeline is not known to its patch yet
                stack.enter_context(patch.running_in(site.run))
            return function(self, *args, **kwargs)


def patches_of(pipeline: object) -> list[DenoiserPatch]:
    """The patches of a pipeline's denoisers."""
    sites = (site_of(module) for part in parts_of(pipeline) for module in patched(part))
    found = {id(site.patch): site.patch for site in sites}
    return [patch for patch in found.values() if isinstance(patch, DenoiserPatch)]
