"""Compile what `read_rows` runs on an H200 where there is no GPU: FlexAttention's lowering, Triton, PTX. Nothing runs.

    python tests/flex_to_build.py decode 4 64 128 bfloat16 4096 12

takes a kind, rows, head_dim, block, dtype, slots and heads. It prints a line of JSON for each kernel, or ends with the
compiler's error. Who asks for the device is told of one that is not there, so torch has to be a build for CUDA; what
Inductor would compute on the device while it compiles is off.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    shared_memory_per_block_optin=227 * 2**10,
    L2_cache_size=60 * 2**20,
    total_memory=139 * 2**30,
    warp_size=32,
)
ANSWERS = {
    **{
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    },
    **{"get_device_properties": H200, "get_device_capability": (9, 0), "_lazy_init": None, "set_device": None},
    **{"get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None},
}
TARGET = GPUTarget("cuda", 90, 32)

# Before anything takes hold of these functions.
torch._C._ensureCUDADeviceGuardSet()
for name, answer in ANSWERS.items():
    setattr(torch.cuda, name, lambda *args, answer=answer: answer)
triton.runtime.driver.set_active(
    SimpleNamespace(
        get_current_target=lambda: TARGET, get_current_device=lambda: 0, get_current_stream=lambda device: 0
    )
)

import torch._inductor.config  # noqa: E402
import torch._inductor.fx_passes.joint_graph as joint_graph  # noqa: E402
import torch._inductor.runtime.triton_helpers as triton_helpers  # noqa: E402
from torch._inductor.output_code import CompiledFxGraph  # noqa: E402
from torch._inductor.runtime.triton_heuristics import CachingAutotuner  # noqa: E402
from torch._subclasses import fake_tensor  # noqa: E402

from ds2ds.attention.block_tables import BlockTable  # noqa: E402
from ds2ds.attention.flex_kernel import DECODE, PREFILL, _options, read_rows  # noqa: E402

fake_tensor.init_gpu_context = lambda device: None
triton_helpers.set_driver_to_gpu = lambda: None
joint_graph.lazy_init = lambda device=None: None
torch._inductor.config.joint_graph_constant_folding = False
# What was compiled before is compiled again, and here: else it would not be seen.
torch._inductor.config.force_disable_caches = True
torch._inductor.config.compile_threads = 1


class Compiled(Exception):
    """All kernels are compiled, and the first one would be launched."""


def build(kind: str, rows: int, head_dim: int, block: int, dtype: str, slots: int, heads: int) -> list[dict[str, Any]]:
    """The kernels of the bucket for so many rows, in each of the configurations to choose from."""
    built: list[dict[str, Any]] = []
    compile_one = triton.compile

    def noted(*args: Any, **kwargs: Any) -> Any:
        binary = compile_one(*args, **kwargs)
        built.append({"name": binary.metadata.name, "shared": binary.metadata.shared})
        return binary

    def launch(*args: Any) -> Any:
        raise Compiled

    tiles = {"decode": DECODE, "prefill": PREFILL}[kind]
    bucket = tiles.bucket(rows, 1)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": torch.device("cuda", 0)}
    with fake_tensor.FakeTensorMode(), torch.inference_mode():
        table = BlockTable(bucket, 8, slots, block, options["device"])
        queries = torch.empty(*table.token.shape, heads, head_dim, **options)
        keys, values = torch.empty(2, heads, slots, head_dim, **options)
        cos, sin = torch.empty(2, 512, head_dim, device=options["device"])
        where = (table.position, table.tile, table.first, table.count, cos, sin, bucket.fan)
        read = torch.compile(read_rows, dynamic=False, fullgraph=True)
        with (
            patch.object(triton, "compile", noted),
            patch.object(CachingAutotuner, "_make_launchers", lambda self: None),
            patch.object(CompiledFxGraph, "__call__", launch),
        ):
            try:
                read(queries, keys, values, table.mask, *where, _options(tiles, keys, block))
            except Compiled:
                return built
    raise RuntimeError("what was compiled was not called")


if __name__ == "__main__":
    kind, rows, head_dim, block, dtype, slots, heads = sys.argv[1:]
    for kernel in build(kind, int(rows), int(head_dim), int(block), dtype, int(slots), int(heads)):
        print(json.dumps(kernel))
