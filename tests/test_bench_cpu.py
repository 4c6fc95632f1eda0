"""The benchmarks of a CPU beside other programs and with other instructions, at sizes that take little time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_figures import RESULTS, ROOT

from ds2ds.native import operations as native


def run(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What it writes."""
    file = folder / "made.json"
    command = [sys.executable, str(ROOT / "bench" / name), *arguments, "--output", str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=ROOT)
    return dict(json.loads(file.read_text()))


SMALL = ("--size", "1x64", "--context", "4", "--tokens", "2", "--rounds", "1", "--threads", "1")


@pytest.mark.parametrize("name", ["busy", "processors"])
def test_they_write_what_they_wrote(name: str, tmp_path: Path) -> None:
    if name == "processors" and not native.available():
        pytest.skip("there is no C compiler")
    made = run(f"{name}.py", tmp_path, *SMALL, *(("--contestant", "ds2ds-float32") if name == "busy" else ()))
    kept = json.loads((RESULTS / f"{name}_cpu.json").read_text())
    assert made.keys() == kept.keys() and made["settings"].keys() == kept["settings"].keys()
    kinds = ("contestant", "condition") if name == "busy" else ("vectors",)
    kept_of = {tuple(one[kind] for kind in kinds): one for one in kept["results"]}
    assert len(made["results"]) >= 4  # of processors one less where there is no AVX512
    for one in made["results"]:
        assert one.keys() == kept_of[tuple(one[kind] for kind in kinds)].keys()
