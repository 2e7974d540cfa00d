"""What a measurement ran on: processor, memory, accelerator, driver, software versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("prune2drive", "torch", "transformers", "numpy", "triton", "flash-attn")


def hardware(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return processor name, usable cores, torch threads, RAM bytes, and the CUDA device if one is used.

    Of a CUDA device: ``gpu`` its name, ``gpu_bytes``, ``capability`` as "9.0", ``multiprocessors``, and
    ``driver``, the version of the driver, None where nvidia-smi does not tell. Host names, serial numbers
    and other identifying strings are left out, so the result can be published.
    """
    out: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "ram_bytes": ram_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.device(device).type,
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        out["gpu"] = properties.name
        out["gpu_bytes"] = properties.total_memory
        out["capability"] = f"{properties.major}.{properties.minor}"
        out["multiprocessors"] = properties.multi_processor_count
        out["driver"] = driver_version()
    return out


def versions() -> dict[str, str]:
    """Return the versions of Python, the packages that matter for speed, and CUDA if torch has it."""
    out = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        out["cuda"] = torch.version.cuda
    return out


def cpu_name() -> str:
    """The processor's marketing name, or the machine type where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def ram_bytes() -> int | None:
    """Memory of the machine, or None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def driver_version() -> str | None:
    """Version of the NVIDIA driver, the same for all devices of a machine; None where nothing tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = told.strip().splitlines()
    return lines[0].strip() if lines else None


def usable_cores() -> int:
    """Cores this process may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
