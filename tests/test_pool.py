"""The threads of compiled code: the same results whoever takes which part, from several callers, after a fork."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ds2ds.native import operations as native

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="there is no C compiler"),
    pytest.mark.usefixtures("threads_as_before"),
]


def products(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = 1 + seed % 80
    return torch.randn(rows, 96, generator=generator), torch.randn(50 + seed, 96, generator=generator)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    """More of them than there are cores, then fewer again."""
    with torch.inference_mode():
        for seed in (0, 39, 79):
            x, weight = products(seed)
            results = []
            for threads in (1, 2, 17, 3, 1, 300):
                torch.set_num_threads(threads)
                results.append(native.linear_float(x, weight))
            assert all(torch.equal(result, results[0]) for result in results)


def test_callers_on_several_threads_do_not_disturb_each_other() -> None:
    torch.set_num_threads(3)

    def work(seed: int) -> bool:
        x, weight = products(seed)
        with torch.inference_mode():
            first = native.linear_float(x, weight)
            torch.testing.assert_close(first, x @ weight.T, atol=1e-4, rtol=1e-4)
            return all(torch.equal(native.linear_float(x, weight), first) for _ in range(40))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))


def in_a_process(text: str) -> subprocess.CompletedProcess[str]:
    """Of its own, so that what hangs there hangs nothing here."""
    start = "import os, signal, torch\nfrom ds2ds.native import operations as native\ntorch.set_num_threads(3)\n"
    start += "x, w = torch.randn(40, 96), torch.randn(200, 96)\ntorch.set_grad_enabled(False)\n"
    return subprocess.run([sys.executable, "-c", start + text], capture_output=True, text=True, timeout=120)


def test_a_forked_process_has_threads_of_its_own() -> None:
    done = in_a_process(
        "before = native.linear_float(x, w)\n"
        "child = os.fork()\n"
        "same = all(torch.equal(native.linear_float(x, w), before) for _ in range(100))\n"
        "if child == 0: os._exit(0 if same else 1)\n"
        "print(same, os.waitpid(child, 0)[1])\n"
    )
    assert done.stdout == "True 0\n", done.stderr


HELPED = """
import time
def helped():
    "Whether other threads than this one worked, before long."
    before, end = time.process_time() - time.thread_time(), time.monotonic() + 10
    while time.monotonic() < end:
        native.linear_float(x, w)
        if time.process_time() - time.thread_time() > before + 0.01: return True
    return False
"""


def test_threads_sleep_while_there_is_nothing_to_do_and_are_woken() -> None:
    done = in_a_process(
        HELPED + "print(helped())\n"
        "time.sleep(0.1)\n"
        "before = time.process_time()\n"
        "time.sleep(0.3)\n"
        "print(time.process_time() - before < 0.1, helped())\n"
    )
    assert done.stdout == "True\nTrue True\n", done.stderr


def test_who_sleeps_until_others_are_done_is_woken() -> None:
    """Two parts, of milliseconds each."""
    done = in_a_process(
        "torch.set_num_threads(2)\n"
        "x, w = torch.ones(1024, 512), torch.ones(96, 512)\n"
        "print(all((native.linear_float(x, w) == 512).all() for _ in range(100)))\n"
    )
    assert done.stdout == "True\n", done.stderr


def test_threads_of_a_forked_process_work() -> None:
    done = in_a_process(
        HELPED + "print(helped(), flush=True)\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if helped() else 1)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    assert done.stdout == "True\n0\n", done.stderr


def test_signals_are_pythons() -> None:
    done = in_a_process(
        "native.linear_float(x, w)\n"
        "for _ in range(50):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        signal.pause()\n"
        "    except KeyboardInterrupt: pass\n"
        "print('interrupted')\n"
    )
    assert done.stdout == "interrupted\n", done.stderr
