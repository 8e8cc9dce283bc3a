"""What machine a number was measured on, without saying whose."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

Fact = str | int | float | bool

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
_PACKAGES = ("torchvision", "timm", "transformers", "open_clip_torch")
# switches of the allocators; their values are numbers and options, never paths
_SETTINGS = (
    "GLIBC_TUNABLES",
    "MALLOC_",
    "PYTORCH_ALLOC",
    "PYTORCH_CUDA_ALLOC",
    "THP_MEM_ALLOC_ENABLE",
)


def environment(device: str | torch.device = "cpu") -> dict[str, Fact]:
    """Facts that a timing depends on: processor, threads, versions, allocator, device.

    No host name, path or user name is in it, so it can be published with the numbers.

    Args:
        device: the device of the run; for CUDA its name and versions are added.
    """
    facts: dict[str, Fact] = {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "cpu_features": " ".join(f for f in _FLAGS if f in _cpu_flags()) or "not known",
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.device(device).type,
        **_allocator(),
    }
    if hasattr(os, "getloadavg"):
        facts["load_1min"] = round(os.getloadavg()[0], 1)
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.device(device).type == "cuda":
        facts.update(_cuda(torch.device(device)))
    return facts


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set((_cpu_info("flags") or _cpu_info("Features")).split())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _allocator() -> dict[str, Fact]:
    preload = os.environ.get("LD_PRELOAD", "")
    libc, number = platform.libc_ver()
    name = next((a for a in _ALLOCATORS if a in preload), f"{libc} {number}".strip() or "system")
    facts: dict[str, Fact] = {"allocator": name}
    for key in sorted(os.environ):
        if key.startswith(_SETTINGS):
            facts[key] = os.environ[key]
    try:
        pages = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return facts
    chosen = [word.strip("[]") for word in pages.split() if word.startswith("[")]
    return {**facts, "huge_pages": chosen[0] if chosen else "not known"}


def _cuda(device: torch.device) -> dict[str, Fact]:
    props = torch.cuda.get_device_properties(device)
    return {
        "gpu": props.name,
        "gpu_memory_gib": round(props.total_memory / 2**30, 1),
        "gpu_capability": f"{props.major}.{props.minor}",
        "gpu_bf16": torch.cuda.is_bf16_supported(),
        "cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or 0,
    }
