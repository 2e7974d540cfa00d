"""Compile the GPU programs of `fps` for a GPU that is not there, and print what came out as JSON.

Run by `test_fps_compiled` in a process of its own, where Triton does not interpret. Everything up to the
launch is what a GPU machine runs: the driver below names a target and has no device.
"""

import json
import re
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from prune2drive.functional.kernels import Launch, launch, plan

NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class NoDriver:
    capability = 90

    def get_current_device(self):
        return self.capability  # programs are kept per device

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)


made = []
compile_and_launch = JITFunction.run


def compile_only(self, *args, grid, warmup, **options):
    made.append((self.__name__, grid, compile_and_launch(self, *args, grid=grid, warmup=True, **options)))


def told(cubin, tool, *options):
    """What one of NVIDIA's tools says of a compiled program, or None without the tool."""
    path = NVIDIA / tool
    if not path.exists():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, *options, file.name], capture_output=True, text=True).stdout


def registers(cubin):
    """Registers and stack bytes per thread; None if unknown."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", told(cubin, "cuobjdump", "--dump-resource-usage") or "")
    return [int(found[1]), int(found[2])] if found else None


def waits(cubin):
    """How often the loop of `picks` waits for part of a row before it asks for more; None if unknown."""
    code = told(cubin, "nvdisasm", "-c") or ""
    loops = [part for part in re.split(r"^\.L_x_\d+:", code, flags=re.M) if "LDG" in part and "FMNMX" in part]
    if len(loops) != 1:
        return None
    loads_and_minima = re.findall(r"\b(LDG|FMNMX)\b", loops[0])
    return sum(pair == ("FMNMX", "LDG") for pair in pairwise(loads_and_minima))


def describe(case, name, grid, kernel):
    ptx = kernel.asm["ptx"]
    return {
        "case": case,
        "name": name,
        "capability": NoDriver.capability,
        "programs": grid[0],
        "warps": kernel.metadata.num_warps,
        "shared": kernel.metadata.shared,
        "registers": registers(kernel.asm["cubin"]),
        "waits": waits(kernel.asm["cubin"]) if name == "picks" else None,
        "redux": ptx.count("redux.sync"),
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "fma": len(re.findall(r"\bfma\.r", ptx)),
        "vector_loads": len(re.findall(r"ld\.global\.v4", ptx)),
        "async_copies": len(re.findall(r"cp\.async\.c[ag]", ptx)),
    }


def main():
    driver.set_active(NoDriver())
    JITFunction.run = compile_only
    for capability in (90, 80):
        NoDriver.capability = capability
        large = capability == 90
        cases = {
            # name: features, start, mask, metric, k, layout
            "six cameras": (torch.empty(6, 729, 4096).bfloat16(), False, False, "cosine", 72, None),
            "masked": (torch.empty(6, 256, 2560).half(), True, True, "l2", 26, None),
            "float32": (torch.empty(2, 300, 64), False, True, "nearest", 30, None),
            "longest": (torch.empty(1, 4096, 64).bfloat16(), False, False, "nearest", 9, None),
            "odd": (torch.empty(1, 50, 37).bfloat16(), True, False, "cosine", 9, Launch(launch.SMALL)),
        }
        for case, (features, started, masked, metric, most, layout) in cases.items():
            views, tokens, _ = features.shape
            made.clear()
            launch.order(
                features,
                torch.full((views,), most),
                torch.zeros(views, dtype=torch.int64) if started else None,
                torch.ones(views, tokens, dtype=torch.bool) if masked else None,
                metric,
                most,
                layout or plan(views, tokens, large=large),
            )
            for name, grid, kernel in made:
                print(json.dumps(describe(case, name, grid, kernel)))


if __name__ == "__main__":
    sys.exit(main())
