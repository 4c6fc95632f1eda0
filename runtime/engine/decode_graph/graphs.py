"""A decode step as a function of device tables alone: run as it is, or captured in a CUDA graph for each bucket."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ds2ds.cache.arena import KVArena
from ds2ds.engine.decode_graph.forward import FEW_ROWS, few_rows_logits, takes
from ds2ds.errors import ConfigError
from ds2ds.kernels.decode_attention import store_and_read
from ds2ds.kernels.decode_tables import DecodeTables, advance, lay_out
from ds2ds.kernels.overlap import CAPABILITY, overlapping
from ds2ds.kernels.sampling.launch import sample_on_device
from ds2ds.model.ds2ds_model import DS2DSModel


class Bucket(NamedTuple):
    """What the shapes of a step depend on.

    Attributes:
        rows: computed, powers of two; those that are not there cost little.
        width: parts that a row may read, a power of two.
        penalised: whether any row has a repetition penalty.
    """

    rows: int
    width: int
    penalised: bool


class Graphs:
    """Runs steps: embedding, backbone, lm head, sampling, and the tables moved on, with nothing from the host between.

    All that a step reads and writes stays where it is: the weights, the arena and the tables. What it computes on the
    way lies in memory that all graphs share, as only one runs at a time.

    Args:
        part: most keys of a part.
        capture: in CUDA graphs; else every kernel is launched by itself, on any device that Triton has.
        few_rows: up to so many rows are computed as `forward` does it.
        overlap: let launches of our kernels overlap, see `ds2ds.kernels.overlap`. To be measured (bench/gpu_step.py).

    Attributes:
        captured: how many graphs have been captured.

    Raises:
        ConfigError: launches cannot overlap on this device.
    """

    def __init__(
        self,
        model: DS2DSModel,
        arena: KVArena,
        tables: DecodeTables,
        part: int,
        capture: bool = True,
        few_rows: int = FEW_ROWS,
        overlap: bool = False,
    ) -> None:
        if overlap and not can_overlap(arena.data.device):
            raise ConfigError(f"launches overlap on a GPU of compute capability 9.0 or later, got {arena.data.device}")
        self.overlap = overlap
        self.model, self.arena, self.tables, self.part, self.capture = model, arena, tables, part, capture
        self._most_few_rows = few_rows
        self.captured = 0
        self._graphs: dict[Bucket, torch.cuda.CUDAGraph] = {}
        self._addresses: list[int] = []
        # One for all: cuBLAS keeps a workspace for every stream that it has seen.
        self._stream = torch.cuda.Stream(arena.data.device) if capture else None
        self._pool = torch.cuda.graph_pool_handle() if capture else None

    def run(self, bucket: Bucket) -> None:
        """Compute a step, or, with graphs, have it computed: nothing waits for it. A new bucket is captured first."""
        if not self.capture:
            self.compute(bucket)
            return
        self.prepare(bucket)
        self._graphs[bucket].replay()

    def prepare(self, bucket: Bucket) -> None:
        """Capture a bucket, unless it is. No effect without graphs."""
        stream = self._stream
        if stream is None or bucket in self._graphs:
            return
        current = torch.cuda.current_stream(self.arena.data.device)
        with self._undisturbed():
            # What is compiled or allocated once, as cuBLAS' workspace, has to be before a capture, on its stream.
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self.compute(bucket)
            current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local")
        with _nothing_collected(), capture:
            self.compute(bucket)
        self._graphs[bucket] = graph
        self.captured += 1

    @property
    def few_rows(self) -> int:
        """Up to so many rows are computed as `forward` does it: none of a model that it cannot do with as it is now."""
        return self._most_few_rows if takes(self.model) else 0

    def use_weights(self) -> None:
        """Forget what was captured of weights that are elsewhere now; those changed in place are read as they are."""
        model, rotary = self.model, self.model.rotary
        read = chain(model.parameters(), model.buffers(), (rotary.cos, rotary.sin))
        addresses = [tensor.data_ptr() for tensor in read]
        if addresses != self._addresses:
            self._addresses = addresses
            self._graphs.clear()
            # A pool whose graphs are all gone, but not all of its memory, takes no new ones: torch asserts that.
            self._pool = torch.cuda.graph_pool_handle() if self.capture else None

    @torch.inference_mode()
    def compute(self, bucket: Bucket) -> None:
        """The step itself."""
        tables, (rows, width, penalised) = self.tables, bucket
        data, rotary = self.arena.data, self.model.rotary
        lay_out(tables, rows, width, self.part)
        slot = tables.column("slot", rows)
        parts, first, count = tables.parts[: rows * width], tables.first[:rows], tables.count[:rows]
        few = rows <= self.few_rows

        def attend(layer: int, qk: Tensor, v: Tensor) -> Tensor:
            cos, sin = rotary.cos, rotary.sin
            return store_and_read(data[layer], qk, v, cos, sin, slot, parts, first, count, self.part, norm=few)

        ids, model = tables.ids[:rows], self.model
        marked = tables.penalised(rows) if penalised else None
        with overlapping(self.overlap):
            logits = few_rows_logits(model, ids, attend) if few else model.logits(model.hidden(ids, attend))
            advance(tables, rows, *sample_on_device(logits, tables.settings(rows), None, marked=marked), penalised)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """What runs in here sees tables without rows, and leaves no trace in them, nor in the arena."""
        with torch.inference_mode():
            kept = [tensor.clone() for tensor in self.tables.state]
            self.tables.column("slot", self.tables.rows).fill_(-1)
            yield
            for tensor, before in zip(self.tables.state, kept, strict=True):
                tensor.copy_(before)


def can_overlap(device: torch.device) -> bool:
    """Whether launches may overlap there."""
    if device.type != "cuda":
        return False
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor >= CAPABILITY


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """No cyclic garbage is collected: were there an old graph in it, its end would spoil the capture of a new one."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
