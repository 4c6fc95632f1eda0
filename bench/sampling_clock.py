"""How long a sampler takes on logits that are not in a cache, and how fast memory is copied, by the same clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch_sampling import Sampler

# Five times the L2 cache of the largest GPUs of today.
FAR_BEYOND_CACHE = 2**28
FEWEST_REPLAYS, MOST_REPLAYS = 7, 50


class Calls(NamedTuple):
    """Attributes:
    launch: makes all the calls, one after the other, without waiting for them.
    number: how many those are.
    tokens: what the first of them returns; filled when all of them are done.
    """

    launch: Callable[[], object]
    number: int
    tokens: Tensor


class Clock:
    """The processor's: calls return when they are done.

    Args:
        budget: about how many seconds to measure one sampler for.
    """

    def __init__(self, device: torch.device, budget: float) -> None:
        self.device, self.budget = device, budget

    def prepare(self, sampler: Sampler, buffers: Sequence[Tensor], graph: bool = True) -> Calls:
        """One call on each of the buffers; they have been made once when this returns."""
        return Calls(lambda: [sampler(logits) for logits in buffers], len(buffers), sampler(buffers[0]))

    def seconds(self, calls: Calls) -> float:
        """Of one call: the median over replays of all of them."""
        guess = self._replays(calls, 2)[-1]
        replays = min(max(int(self.budget / guess), FEWEST_REPLAYS), MOST_REPLAYS)
        return statistics.median(self._replays(calls, replays)) / calls.number

    def copy_bandwidth(self) -> float:
        """Bytes per second, those read and those written, of a copy of far more than a cache holds."""
        size = FAR_BEYOND_CACHE * (4 if self.device.type == "cuda" else 1)
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.ones_like(source)
        return 2 * source.nbytes / self.seconds(Calls(lambda: target.copy_(source), 1, target))

    def _replays(self, calls: Calls, count: int) -> list[float]:
        taken = []
        for _ in range(count):
            started = time.perf_counter()
            calls.launch()
            taken.append(time.perf_counter() - started)
        return taken


class CudaClock(Clock):
    """The GPU's: events around the replay of a graph."""

    def __init__(self, device: torch.device, budget: float) -> None:
        super().__init__(device, budget)
        self._other = torch.ones(FAR_BEYOND_CACHE // 4, device=device)

    def prepare(self, sampler: Sampler, buffers: Sequence[Tensor], graph: bool = True) -> Calls:
        # What is compiled or made once has to be there before the capture; as that, it is done on a stream of its own.
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            tokens = [sampler(logits) for logits in buffers]
        torch.cuda.synchronize(self.device)
        if not graph:
            return Calls(lambda: [sampler(logits) for logits in buffers], len(buffers), tokens[0])
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            tokens = [sampler(logits) for logits in buffers]
        captured.replay()
        torch.cuda.synchronize(self.device)
        return Calls(captured.replay, len(buffers), tokens[0])

    def _replays(self, calls: Calls, count: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for begin, end in events:
            # A read leaves nothing in the cache to be written back later. It takes long enough for the launch that
            # follows to be queued before it is done.
            self._other.amax()
            begin.record()
            calls.launch()
            end.record()
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) / 1e3 for begin, end in events]


def make_clock(device: torch.device, budget: float) -> Clock:
    return (CudaClock if device.type == "cuda" else Clock)(device, budget)
