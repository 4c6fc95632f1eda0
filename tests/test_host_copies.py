"""Memory of the host that a GPU copies from and to: pinned, waited for, and let alone while a copy is under way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from decode_reference import decode_in_tables, use_plain_kernels
from numpy.typing import NDArray
from scripted import Texts, finish, is_clean, small_runtime
from test_decode_graph import PROMPTS, TEXTS, VARIED, assert_same_as_alone, start
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ds2ds.engine.decode_graph import decoder, table_writer
from ds2ds.engine.decode_graph.host_copies import HostBuffer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the GPU there: test_decode_graph_gpu.py")


def test_a_copy_waits_for_nobody_and_is_done_when_it_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, which is stood in for."""
    done: list[str] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__ == "copy_":
                done.append("copy" if args[2] else "copy that waits")
            return func(*args, **(kwargs or {}))

    class Event:
        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("wait")

    def zeros(*shape: Any, pin_memory: bool, **options: Any) -> Tensor:
        done.append("pinned" if pin_memory else "pageable")
        return torch.empty(*shape, **options).zero_()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", zeros)
        buffer = HostBuffer((3, 2), torch.device("cuda"))
    there = torch.arange(6, dtype=torch.int32).view(3, 2)
    with Copies():
        buffer.fetch(2, there)
        buffer.wait()
        assert buffer.values.tolist() == [[0, 1], [2, 3], [0, 0]]
        buffer.values[:] = 7
        buffer.send(1, there)
        buffer.wait()
    assert there.tolist() == [[7, 7], [2, 3], [4, 5]]
    assert done == ["pinned", "copy", "record", "wait", "copy", "record", "wait"]


class UnderWay(HostBuffer):
    """Its memory is nobody's from a copy until that was waited for."""

    under_way = False

    def send(self, rows: int, target: Tensor) -> None:
        assert not self.under_way
        super().send(rows, target)
        self.under_way = True

    def fetch(self, rows: int, source: Tensor) -> None:
        super().fetch(rows, source)
        self.under_way = True

    def wait(self) -> None:
        super().wait()
        self.under_way = False

    @property
    def values(self) -> NDArray[np.int32]:  # type: ignore[override]
        assert not self.under_way, "a copy may be under way"
        return self._values

    @values.setter
    def values(self, values: NDArray[np.int32]) -> None:
        self._values = values


@pytest.mark.parametrize("ahead", [True, False])
def test_nobody_touches_memory_while_a_copy_may_be_under_way(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_plain_kernels(monkeypatch)
    for module in (decoder, table_writer):
        monkeypatch.setattr(module, "HostBuffer", UnderWay)
    runtime, corpus = small_runtime(max_running=8), Texts(TEXTS)
    decode_in_tables(runtime, ahead=ahead)
    running = []
    for prompt, options in zip(PROMPTS[2:], VARIED[2:], strict=True):
        running.append(start(runtime, prompt, corpus, **options))
        runtime.engine.step()
    finish(runtime, *running)
    assert is_clean(runtime)
    for one, prompt, options in zip(running, PROMPTS[2:], VARIED[2:], strict=True):
        assert_same_as_alone(one, prompt, corpus, **options)
