"""Figures that are quoted stand in a file of bench/results, and say there how they were measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"


def load(path: Path) -> ModuleType:
    """A script of the repository as a module, its own folder on the path as when it is run."""
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(path.parent))


def test_the_readme_shows_the_decode_benchmark_as_it_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert load(ROOT / "bench" / "read_results.py").markdown_table(RESULTS / "decode_cpu.json") in readme


def test_the_readme_shows_reuse_and_retention_as_they_were_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = load(ROOT / "bench" / "read_results.py")
    assert tables.reuse_table(RESULTS / "reuse_cpu.json") in readme
    assert tables.reuse_table(RESULTS / "reuse_sweep_cpu.json") in readme
    assert tables.retention_table(RESULTS / "retention.json") in readme


def test_the_readme_and_the_page_on_performance_show_the_cpu_step_as_it_was_measured() -> None:
    table = load(ROOT / "bench" / "read_results.py").cpu_step_table(RESULTS / "cpu_step_cpu.json")
    for page in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        assert table in page.read_text(encoding="utf-8")


def test_the_page_on_performance_shows_the_host_s_part_as_it_was_measured() -> None:
    tables = load(ROOT / "bench" / "read_results.py")
    assert tables.host_step_table(tables.HOST_STEP) in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_the_page_on_performance_shows_busy_cores_and_other_instructions_as_they_were_measured() -> None:
    tables = load(ROOT / "bench" / "read_results.py")
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert tables.busy_table(tables.BUSY) in page
    assert tables.processors_table(tables.PROCESSORS) in page


def test_the_page_on_sampling_shows_the_cpu_as_it_was_measured() -> None:
    tables = load(ROOT / "bench" / "read_results.py")
    assert tables.sampling_table(tables.SAMPLING) in (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")


def test_the_page_on_sampling_shows_the_instructions_as_they_were_counted() -> None:
    tables = load(ROOT / "bench" / "read_results.py")
    assert tables.issue_slots_table(tables.ISSUE_SLOTS) in (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")


def test_the_page_on_performance_shows_larger_models_as_they_were_measured() -> None:
    tables = load(ROOT / "bench" / "read_results.py")
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert tables.sizes_table(*tables.SIZES) in page
    assert tables.workloads_table(*tables.WORKLOADS) in page


def test_the_page_on_performance_quotes_figures_as_they_were_measured() -> None:
    page = " ".join((ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split())
    step, linear, sampling, load = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("cpu_step_cpu", "linear_cpu", "sampling_cpu", "serve_load")
    )
    (invariant,) = step["batch_invariant_prefill"]
    assert f"{invariant['context']} tokens take {invariant['cost']:.2f} times as long" in page
    one, many = (result["times"] for result in step["results"])
    assert (
        f"one sequence: int8 is {one['ds2ds-int8']['ctranslate2-int8']:.2f} times CTranslate2's int8, float32 "
        f"{one['ds2ds-float32']['transformers']:.2f} times transformers and int8 "
        f"{one['ds2ds-int8']['transformers']:.2f} times; sixteen: int8_dynamic is "
        f"{many['ds2ds-int8_dynamic']['transformers']:.2f} times transformers and "
        f"{many['ds2ds-int8_dynamic']['ctranslate2-int8']:.2f} times CTranslate2's int8, float32 "
        f"{many['ds2ds-float32']['transformers']:.2f} times transformers"
    ) in page
    of_one = [result for result in linear["results"] if result["rows"] == 1]
    torchs, memory = (
        f"{min(result[name] for result in of_one):.0f} to {max(result[name] for result in of_one):.0f}"
        for name in ("torch", "sum")
    )
    assert f"torch's linear layers: for one row {torchs} GB/s, where memory gives {memory}" in page
    times: dict[int, list[float]] = {1: [], 8: []}
    for result in sampling["results"]:
        if (result["logits"], result["way"]) != ("flat", "top-p"):  # like no language model's
            numpy, ours = (result["samplers"][name]["microseconds"] for name in ("NumPy", "ds2ds"))
            times[result["batch"]].append(numpy / ours)
    one_row, eight = (f"{min(of):.1f} to {max(of):.1f} times less" for of in times.values())
    assert f"{one_row} than in NumPy, and eight rows {eight}" in page
    last = load["results"][-1]
    first = last["time_to_first_token_ms"]["p50"] / 1000
    assert f"makes it {first:.2f} s and {last['tokens_per_second']:.0f} tokens/s" in page


def test_the_page_on_the_server_shows_the_load_as_it_was_measured() -> None:
    tables = load(ROOT / "bench" / "read_results.py")
    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    assert tables.serve_load_table(tables.SERVE_LOAD) in page
    assert tables.serve_host_table(tables.SERVE_HOST) in page
    for name in ("serve_load", "serve_locust"):
        results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]
        assert sum(result["failed"] for result in results) == 0


def test_the_readme_quotes_what_int8_costs_as_it_was_measured() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    weights = json.loads((RESULTS / "quantised_cpu.json").read_text(encoding="utf-8"))["weights"]
    int8, dynamic = (f"{weights[kind]['perplexity_change']:.2%}" for kind in ("int8", "int8_dynamic"))
    assert f"perplexity on held-out entries rises by {int8} with int8 and {dynamic} with int8_dynamic" in readme


def test_the_readme_quotes_link_events_and_compaction_as_they_were_measured() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (event,) = json.loads((RESULTS / "link_event_cpu.json").read_text(encoding="utf-8"))["results"]
    here, following, gone = (
        f"{event[kind][part] / 1e3:.1f} ms"
        for kind, part in (("resident", "total_us"), ("resident", "follow_us"), ("not resident", "total_us"))
    )
    assert (
        f"A link to a document of 128 tokens costs {here} where it is in the store, {following} of that for following "
        f"it, and {gone} where it is not (demo model, medians; a plain token of that stream takes "
        f"{event['resident']['plain_us'] / 1e3:.1f} ms;"
    ) in readme
    results = json.loads((RESULTS / "compaction_cpu.json").read_text(encoding="utf-8"))["results"]
    speeds = " and ".join(f"{result['gb_per_second']:.1f} GB/s" for result in results)
    shares = " and ".join(f"{result['share_of_copy']:.0%}" for result in results)
    assert f"Compaction of 8,192 and 32,768 slots moves {speeds}, {shares} of a plain copy" in readme


def test_the_model_card_shows_the_evaluation_as_it_was_measured() -> None:
    card = (ROOT / "runtime" / "data" / "demo" / "README.md").read_text(encoding="utf-8")
    figures = json.loads((RESULTS / "demo_model.json").read_text(encoding="utf-8"))
    rows = load(ROOT / "examples" / "foldoc" / "evaluate.py").summary(figures)
    assert len(rows) == 6
    for name, value in rows:
        assert f"| {name} | {value} |" in card


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_names_machine_date_and_commit(path: Path) -> None:
    environment = json.loads(path.read_text(encoding="utf-8"))["environment"]
    assert environment["date"] and environment["torch"] and environment["cpu"]
    assert len(environment["commit"]) == 40


def test_the_readme_quotes_the_corpus_and_link_figures_as_they_were_measured() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    scale = json.loads((RESULTS / "corpus_scale.json").read_text(encoding="utf-8"))
    assert (
        f"A corpus of {scale['documents']:,} documents opens in {scale['open_ms']:.0f} ms "
        f"with {scale['memory_mb']:.0f} MB above the interpreter; a title is found in {scale['look_up_us']:.0f} µs"
    ) in readme
    large = json.loads((RESULTS / "corpus_scale_3500000.json").read_text(encoding="utf-8"))
    assert round(large["sparse"]["tokens"] / 1e9) == 9 and large["sparse"]["shards"] == 90
    assert (
        f"{large['documents']:,} documents with 9 billion tokens open in {large['open_ms']:.0f} ms with "
        f"{large['memory_mb']:.0f} MB; a title is found in {large['look_up_us']:.0f} µs"
    ) in readme
    links = json.loads((RESULTS / "links_cpu.json").read_text(encoding="utf-8"))["results"]
    costs = [result["us_per_token"] for result in links]
    assert f"Finding links costs {min(costs):.1f} to {max(costs):.1f} µs a token" in readme
