"""Image embeddings: the cosine between the merged and the unmerged model's vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from turbovlm_workbench.load.loaded import Embedder, embedding_of
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tasks.registry import register_task

COSINE = Measure(
    "cosine", "cosine", "mean cosine to the unmerged model's embedding of the same image", False
)
LOWEST = Measure("lowest", "lowest", "the lowest cosine among the images", False, reduce="min")
TURNED = Measure("loss", "1 - cosine", "mean of one minus the cosine", False, "lower")


@register_task
@dataclass(frozen=True)
class Embedding(ImageTask[Tensor]):
    """An encoder whose output is one vector per image."""

    kind = "embedding"
    reads = Embedder
    agreement = COSINE
    drift = TURNED
    tolerance = "a mean cosine of 0.98"

    @property
    def loss(self) -> Measure:
        """One minus the cosine."""
        return TURNED

    @property
    def comparisons(self) -> tuple[Measure, ...]:
        """Mean and lowest cosine."""
        return (COSINE, LOWEST)

    def call(self, model: nn.Module, pixels: Tensor) -> Any:
        """One forward."""
        return model(pixels)

    def read(self, raw: Any) -> Tensor:
        """The projected embedding if there is one, else the pooled one, else cls: (B, C)."""
        return embedding_of(raw).cpu()

    def compare(self, reference: Tensor, output: Tensor, start: int) -> list[dict[str, float]]:
        """From embeddings (B, C) of both models."""
        cosines = cosine_similarity(reference.double(), output.double(), dim=-1).tolist()
        return [{"cosine": c, "lowest": c, "loss": 1 - c} for c in cosines]

    def words(self, output: Tensor) -> list[str]:
        """The first three numbers of each embedding: enough to see that they move."""
        return [", ".join(f"{x:+.3f}" for x in vector[:3].tolist()) + ", ..." for vector in output]

    def acceptable(self, quality: Mapping[str, float], unmerged: Mapping[str, float]) -> bool:
        """See ``tolerance``."""
        return quality["cosine"] >= 0.98
