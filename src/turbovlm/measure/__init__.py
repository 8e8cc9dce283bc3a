"""FLOPs, speed and memory of a model, by one convention and with one harness."""

from turbovlm.measure.environment import environment
from turbovlm.measure.flops import Flops, flops
from turbovlm.measure.memory import peak_memory
from turbovlm.measure.model import throughput
from turbovlm.measure.speed import Ratio, Rounds, Timing, Variant, compare

__all__ = [
    "Flops",
    "Ratio",
    "Rounds",
    "Timing",
    "Variant",
    "compare",
    "environment",
    "flops",
    "peak_memory",
    "throughput",
]
