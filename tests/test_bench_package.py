"""ds2ds.bench: what is timed is what a user gets, and the figures are what the times say."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ds2ds import ConfigError, CorpusError, DocumentCorpus, DS2DSModel, Runtime
from ds2ds.bench import floor, measuring, workloads
from ds2ds.bench.compare import compare, differences, read_result, spread
from ds2ds.bench.models import make_model, parse_size
from ds2ds.bench.suite import Settings, make_runtime, make_workloads
from ds2ds.bench.workloads import Workload
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.documents.document import Document
from ds2ds.model.checkpoint import parse_dtype
from ds2ds.model.quantised import quantise_weights
from ds2ds.native import operations as native
from ds2ds.tokenizer import as_tokenizer

LAYERS, WIDTH, VOCAB = 2, 16, 50257
DOCUMENTS = [
    SourceDocument("Hub", "a place that all others name"),
    *(SourceDocument(f"Spoke {number}", f"leads to the [hub](Hub) as number {number}") for number in range(8)),
]
FOX = "the quick brown fox jumps over the lazy dog, again and again"


@pytest.fixture(scope="module")
def model() -> DS2DSModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DS2DSModel.from_config(
            vocab_size=VOCAB,
            num_layers=LAYERS,
            model_dim=WIDTH,
            num_heads=2,
            max_seq_len=256,
            weight_tying=False,
        )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DocumentCorpus]:
    folder = tmp_path_factory.mktemp("bench") / "corpus"
    write_corpus(folder, DOCUMENTS, tokenizer_name="gpt2", tokenizer=as_tokenizer(None), search=False)
    with DocumentCorpus(folder) as opened:
        yield opened


class Shelf:
    """A corpus of one document, and of one that cannot be read."""

    tokens = as_tokenizer(None).encode(FOX)

    def has_document(self, title: str) -> bool:
        return title in ("Fox", "Broken")

    def get_document(self, title: str) -> list[int]:
        if title == "Broken":
            raise OSError("the disk is gone")
        return self.tokens


def linking(model: DS2DSModel, titles: list[str], at_once: int, tokens: int = 3) -> Workload:
    """A request for each title, which its prompt links."""
    encode = as_tokenizer(None).encode
    prompts = [encode(f"Number {number}: [{title}]({title}) and") for number, title in enumerate(titles)]
    settings = workloads.single(model.config, 200, 40, 0).settings
    settings |= {"max_link_depth": 1, "max_auxiliary_documents": 2, "process_prompt_links": True}
    return Workload("links", prompts, at_once, tokens, settings, Shelf(), [len(Shelf.tokens)])


# Serving


def test_what_is_served_is_what_generate_writes(model: DS2DSModel) -> None:
    workload = workloads.batch(model.config, 3, tokens=6, context=10, seed=1)
    runtime = make_runtime(model, [workload])
    served = measuring.serve(runtime, workload).served
    results = runtime.generate_batch(workload.prompts, max_new_tokens=6, **workload.settings)
    assert [one.root.tokens for one in served] == [result.root_document.tokens for result in results]
    assert len({tuple(one.root.tokens[10:]) for one in served}) > 1, "rows must differ for this to mean anything"


def test_all_of_a_batch_run_at_once_in_the_arena_they_say_they_need(model: DS2DSModel) -> None:
    workload = workloads.batch(model.config, 8, tokens=5, context=20, seed=0)
    runtime = make_runtime(model, [workload])
    done = measuring.serve(runtime, workload)
    assert done.at_once == 8 and done.tokens == 40
    small = Runtime(model, arena_tokens=workload.slots(16) // 3)
    assert measuring.serve(small, workload).at_once < 8


def test_no_more_requests_run_than_are_asked_for(model: DS2DSModel, corpus: DocumentCorpus) -> None:
    workload = workloads.links(model.config, as_tokenizer(None), corpus, 7, 4, seed=0, per_request=2, at_once=3)
    done = measuring.serve(make_runtime(model, [workload]), workload)
    assert done.at_once == 3 and len(done.served) == 7
    assert all(one.running.request.trace.links_from_corpus == 2 for one in done.served)


def test_nothing_stays_pinned(model: DS2DSModel) -> None:
    workload = linking(model, ["Fox", "Fox", "Nothing"], at_once=2)
    runtime = make_runtime(model, [workload])
    measuring.measure(runtime, workload, 2, torch.ones(1000))
    runtime.engine.check_integrity()
    assert not runtime.engine.running and not list(runtime.engine.store.documents())
    runtime.engine.store.clear()
    assert runtime.engine.store.arena.allocator.free == runtime.engine.store.arena.slots


def test_what_a_request_fails_with_is_raised_and_nothing_stays_pinned(model: DS2DSModel) -> None:
    workload = linking(model, ["Fox", "Broken", "Fox"], at_once=2)
    runtime = make_runtime(model, [workload])
    with pytest.raises(OSError, match="the disk is gone"):
        measuring.serve(runtime, workload)
    runtime.engine.check_integrity()
    assert not list(runtime.engine.store.documents())


def test_a_request_that_ends_early_is_an_error(model: DS2DSModel) -> None:
    workload = workloads.single(model.config, tokens=5, context=20, seed=0)
    workload.settings["max_tokens_per_document"] = 23
    with pytest.raises(RuntimeError, match="wrote 3 of 5 tokens: max_tokens_per_document"):
        measuring.serve(make_runtime(model, [workload]), workload)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_hits_are_what_was_computed_before(model: DS2DSModel, at_once: int) -> None:
    workload = linking(model, ["Fox", "Fox", "Fox"], at_once)
    cache = measuring.measure(make_runtime(model, [workload]), workload, 2, torch.ones(1000))["cache"]
    prompts, fox = sum(map(len, workload.prompts)), len(Shelf.tokens)
    assert (cache["tokens_prefilled"], cache["tokens_reused"]) == (prompts + fox, 2 * fox)
    assert (cache["documents"], cache["documents_reused"]) == (3, 2)
    assert cache["hit_rate"] == round(2 * fox / (prompts + 3 * fox), 4)


# Figures


def test_figures_of_a_run_fit_each_other(model: DS2DSModel) -> None:
    workload = workloads.single(model.config, tokens=12, context=30, seed=0)
    result = measuring.measure(make_runtime(model, [workload]), workload, 3, torch.ones(2**20))
    first, between = result["time_to_first_token_ms"], result["time_per_token_ms"]
    assert 0 < between["median"] <= between["p99"]
    assert len(first["rounds"]) == len(between["rounds"]) == 3
    each, total = result["tokens_per_second_per_request"]["rounds"], result["tokens_per_second"]["rounds"]
    for number in range(3):
        seconds = first["rounds"][number] / 1e3 + 11 / each[number]
        assert total[number] == pytest.approx(12 / seconds, rel=0.05)
    assert result["floor"]["share"] == pytest.approx(
        result["floor"]["floor_ms"] / result["floor"]["step_ms"], rel=0.2, abs=1e-3
    )
    assert result["cache"]["tokens_prefilled"] == 30 and result["cache"]["hit_rate"] == 0
    json.dumps(result, allow_nan=False)


def fake(root: Document, started: float, arrivals: list[float]) -> Any:
    trace = SimpleNamespace(tokens_prefilled=30, tokens_reused=10, links_from_corpus=2, documents_reused=1)
    running = SimpleNamespace(started=started, request=SimpleNamespace(context=SimpleNamespace(root=root), trace=trace))
    return measuring.Served(running, arrivals)  # type: ignore[arg-type]


def test_figures_of_times_that_are_known(model: DS2DSModel) -> None:
    runtime = Runtime(model, arena_tokens=64)
    workload = workloads.batch(model.config, 2, tokens=4, context=10, seed=0)
    one, two = (Document("", [0] * 10) for _ in range(2))
    # The second request comes a second later; a step takes a second, the last one four.
    served = [fake(one, 0, [2, 3, 4, 8]), fake(two, 1, [3, 4, 8, 9])]
    read = 1e6
    result = measuring.figures(runtime, workload, [measuring.Round(served, 9, 2)], read)
    assert result["time_to_first_token_ms"] == {"median": 2000, "rounds": [2000]}
    assert result["time_per_token_ms"] == {"median": 1000, "rounds": [1000], "p99": 4000}
    assert result["tokens_per_second"]["median"] == round(8 / 9, 4)
    assert result["tokens_per_second_per_request"]["median"] == 0.5
    # Steps that drew a later token end at 3, 4, 8 and 9, and read the tokens before: 11, 12 + 11, 13 + 12 and 13.
    moved = floor.weight_bytes(model) + floor.token_bytes(runtime.engine) * (13 + 23) / 2
    assert result["floor"]["bytes_per_step"] == moved
    assert result["floor"]["floor_ms"] == round(1e3 * moved / read, 4) and result["floor"]["step_ms"] == 1000
    assert result["floor"]["share"] == round(moved / read, 4)
    assert result["cache"] == {
        "tokens_prefilled": 60,
        "tokens_reused": 20,
        "hit_rate": 0.25,
        "documents": 4,
        "documents_reused": 2,
    }


@pytest.mark.parametrize(("percent", "expected"), [(99, 99), (50, 50), (1, 1), (100, 100)])
def test_percentiles(percent: float, expected: float) -> None:
    values = list(map(float, range(1, 101)))
    random.Random(0).shuffle(values)
    assert measuring.percentile(values, percent) == expected
    assert measuring.percentile([7.0], percent) == 7


def test_the_bytes_of_a_step_are_those_counted_by_hand(model: DS2DSModel) -> None:
    layers = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * 128) + LAYERS // 2
    assert floor.weight_bytes(model) == 4 * (VOCAB * WIDTH + layers)
    tied = DS2DSModel.from_config(vocab_size=500, num_layers=LAYERS, model_dim=WIDTH, num_heads=2)
    assert floor.weight_bytes(tied) == 4 * (500 * WIDTH + layers)
    assert floor.token_bytes(Runtime(model, arena_tokens=64).engine) == LAYERS * 2 * WIDTH * 4
    quantised = quantise_weights(deepcopy(tied))
    head = 512 if native.available() else 500  # packed, outputs are filled up to sixteens
    matrices = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * 128) + head * WIDTH
    rows = LAYERS * (3 * WIDTH + WIDTH + 2 * 128 + WIDTH) + 500
    assert floor.weight_bytes(quantised) == matrices + 4 * rows + 4 * (LAYERS // 2)
    half = deepcopy(tied).to(torch.bfloat16)
    assert floor.token_bytes(Runtime(half, arena_tokens=64).engine) == LAYERS * 2 * WIDTH * 2


def test_a_document_that_several_read_is_read_once() -> None:
    hub, spoke = Document("Hub", [0] * 100), Document("Spoke", [0] * 30)
    again = Document("Hub", [0] * 100)
    one, two = Document("", [0] * 20), Document("", [0] * 20)
    one.add_grant(5, hub)
    two.add_grant(10, again)
    two.add_grant(15, spoke)
    assert floor.tokens_in_view([(one, 5)]) == 5
    assert floor.tokens_in_view([(one, 6)]) == 106
    assert floor.tokens_in_view([(one, 20), (two, 15)]) == 20 + 15 + 100
    assert floor.tokens_in_view([(one, 20), (two, 20)]) == 40 + 100 + 30
    assert floor.read_bandwidth(torch.ones(1000)) > 0


# Workloads


def test_popular_documents_are_linked_most(corpus: DocumentCorpus) -> None:
    chosen = workloads.zipf_titles(corpus, 300, 3, seed=0)
    assert chosen == workloads.zipf_titles(corpus, 300, 3, seed=0) != workloads.zipf_titles(corpus, 300, 3, seed=1)
    assert all(len(set(titles)) == 3 for titles in chosen)
    counts = Counter(title for titles in chosen for title in titles)
    assert counts.most_common(1)[0][0] == "Hub" and len(counts) == 9
    first = Counter(titles[0] for titles in chosen)["Hub"] / 300
    assert first == pytest.approx(1 / sum(1 / rank for rank in range(1, 10)), abs=0.08)


def test_a_corpus_of_too_few_titles_is_an_error(corpus: DocumentCorpus) -> None:
    with pytest.raises(CorpusError, match="has 9 titles that can be linked, 10 are needed"):
        workloads.zipf_titles(corpus, 1, 10, seed=0)


def test_prompts_of_a_batch_differ_and_are_the_same_each_time(model: DS2DSModel) -> None:
    made = [workloads.batch(model.config, 4, tokens=2, context=9, seed=3) for _ in range(2)]
    assert made[0] == made[1]
    assert len({tuple(prompt) for prompt in made[0].prompts}) == 4
    assert {len(prompt) for prompt in made[0].prompts} == {9}


def test_long_is_as_long_as_the_model_takes(model: DS2DSModel) -> None:
    assert len(workloads.long(model.config, 6, None, 0).prompts[0]) == 250
    assert len(workloads.long(model.config, 6, 100, 0).prompts[0]) == 100
    with pytest.raises(ConfigError, match="long: context 251 and 6 tokens exceed the model's max_seq_len 256"):
        workloads.long(model.config, 6, 251, 0)


def test_prompts_with_links_that_find_no_room_are_an_error(model: DS2DSModel, corpus: DocumentCorpus) -> None:
    with pytest.raises(ConfigError, match="more than the 256 in view"):
        workloads.links(model.config, as_tokenizer(None), corpus, 2, 250, 0)


def test_batches_there_is_no_memory_for_are_left_out_unless_asked_for(
    model: DS2DSModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = workloads.batch(model.config, 8, 32, 64, 0).slots(16) * LAYERS * 2 * WIDTH * 4
    monkeypatch.setattr("ds2ds.bench.suite.os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * one}.get)
    sizes = [len(made.prompts) for made in make_workloads(Settings(("batch",)), model)]
    assert sizes == [1, 8]
    asked = make_workloads(Settings(("batch",), batch=(64, 2, 64)), model)
    assert [len(made.prompts) for made in asked] == [2, 64]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workloads": ("fast",)}, r"workload must be among .*'links'.*got \['fast'\]"),
        ({"workloads": ()}, "workload must be among"),
        ({"tokens": 1}, "tokens must be at least 2"),
        ({"requests": 0}, "requests must be at least 1, got 0"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"batch": (4, 0)}, r"batch must be at least 1, got \[4, 0\]"),
        ({"weights": "int3"}, r"weights must be None or one of \('int8', 'int8_dynamic'\), got 'int3'"),
        ({"model": "2x100"}, "a width that 64 divides, got '2x100'"),
        ({"model": "0x64"}, "needs layers"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**wrong)


def test_models_by_name() -> None:
    cpu = torch.device("cpu")
    assert parse_size("12x768") == (12, 768) and parse_size("demo") is None and parse_size("out/12x768") is None
    state = torch.random.get_rng_state()
    one, two = (make_model("1x64", cpu, torch.float32, 100) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.embedding.weight, two.embedding.weight) and one.config.max_seq_len == 100
    assert parse_dtype(None, cpu) is torch.float32 and parse_dtype("bfloat16", cpu) is torch.bfloat16
    with pytest.raises(ConfigError, match=r"dtype must be .*got 'int8'"):
        parse_dtype("int8", cpu)


# Comparing


def measured(factor: float = 1.0, noise: float = 0.0, seed: int = 0, rounds: int = 5) -> dict[str, Any]:
    """A result in which all takes `factor` times as long, and each round that times 1 +- noise."""
    draw = random.Random(seed)

    def figure(value: float, power: int) -> dict[str, Any]:
        values = [value * (factor * draw.gauss(1, noise)) ** power for _ in range(rounds)]
        return {"median": sorted(values)[rounds // 2], "rounds": values}

    results = [
        {
            "workload": workload,
            "requests": requests,
            "time_to_first_token_ms": figure(30, 1),
            "time_per_token_ms": figure(5, 1),
            "tokens_per_second": figure(200, -1),
            "floor": {"read_gb_per_second": 20.0},
        }
        for workload, requests in (("single", 1), ("batch", 8))
    ]
    settings = {"model": "demo", "parameters": 1, "device": "cpu", "dtype": "float32", "tokens": 32}
    settings |= {"context": None, "seed": 0, "rounds": rounds}
    where = {"cpu": "A", "cores": 2, "gpu": None, "threads": 2, "system": "Linux"}
    return {"environment": where, "settings": settings, "results": results}


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_a_planted_regression_is_found(noise: float) -> None:
    found = [
        compare(measured(noise=noise, seed=seed), measured(1.3, noise, seed + 1000), 0.1)[1] for seed in range(100)
    ]
    assert found[0].figure == "time_per_token_ms"
    assert sum(change.slower for change in found) >= (100 if noise < 0.05 else 85)
    assert not any(change.faster for change in found)
    back = compare(measured(1.3), measured(), 0.1)
    assert all(change.faster and not change.slower for change in back)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15])
def test_noise_is_not_taken_for_a_regression(noise: float) -> None:
    changes = [
        change
        for seed in range(100)
        for change in compare(measured(noise=noise, seed=seed), measured(noise=noise, seed=seed + 1000), 0.1)
    ]
    assert len(changes) == 600
    assert sum(change.slower for change in changes) <= 0.05 * len(changes)


def test_the_tolerance_is_a_share_of_time_for_rates_too() -> None:
    for change in compare(measured(), measured(1.2), 0.1):
        assert change.slowdown == pytest.approx(0.2) and change.slower
    assert not any(change.slower for change in compare(measured(), measured(1.2), 0.25))


def test_what_the_machine_contributes_is_told() -> None:
    busy = measured(1.5)
    busy["results"][0]["floor"]["read_gb_per_second"] = 16.0
    changes = compare(measured(), busy, 0.1)
    assert [round(change.memory, 3) for change in changes] == [0.25] * 3 + [0.0] * 3
    assert all(change.slower for change in changes), "it is told, and not taken off"


def test_the_spread_of_rounds_is_little_moved_by_one_outlier() -> None:
    assert spread([10, 10, 10]) == 0
    assert spread([9, 10, 11]) == pytest.approx(0.1)
    assert spread([9, 10, 1000]) == pytest.approx(0.1)


def test_other_machines_and_settings_are_refused_unless_forced() -> None:
    old, new = measured(), measured()
    new["environment"]["cpu"], new["settings"]["dtype"] = "B", "bfloat16"
    assert differences(old, new) == ["dtype was 'float32' and is 'bfloat16'", "cpu was 'A' and is 'B'"]
    with pytest.raises(ConfigError, match=r"cannot be compared .--force .*cpu was 'A' and is 'B'"):
        compare(old, new, 0.1)
    assert len(compare(old, new, 0.1, force=True)) == 6
    rounds = measured(rounds=9)
    assert len(compare(old, rounds, 0.1)) == 6, "more rounds measure the same thing"


def test_only_what_both_have_is_compared() -> None:
    old, new = measured(), measured()
    del old["results"][0]
    assert {change.workload for change in compare(old, new, 0.1)} == {"batch"}
    new["results"] = new["results"][:1]
    with pytest.raises(ConfigError, match="no workload in common"):
        compare(old, new, 0.1)
    with pytest.raises(ConfigError, match="tolerance must be 0 or more, got -1"):
        compare(old, old, -1)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"results": 3}', '{"results": [{"workload": "single"}]}', "null", "[" * 100_000]
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.json is no result of `ds2ds bench --output`"):
        read_result(file)
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.json"):
        read_result(tmp_path / "missing.json")


def test_figures_that_cannot_be_divided_by_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    broken = measured()
    broken["results"][0]["time_per_token_ms"]["median"] = 0
    file.write_text(json.dumps(broken))
    with pytest.raises(ConfigError, match="time_per_token_ms has no rounds, or is not above 0"):
        read_result(file)


@pytest.mark.parametrize("rounds", [[0, 0], "abc", 5, ["1"], [None], [math.nan], [10**400], {"1": 1}])
def test_rounds_that_are_no_numbers_above_0_are_refused(tmp_path: Path, rounds: Any) -> None:
    file = tmp_path / "rounds.json"
    broken = measured()
    broken["results"][0]["time_per_token_ms"]["rounds"] = rounds
    file.write_text(json.dumps(broken))
    with pytest.raises(ConfigError, match="time_per_token_ms has no rounds, or is not above 0"):
        read_result(file)


@pytest.mark.parametrize("part", ["settings", "environment"])
def test_settings_and_machine_are_objects(tmp_path: Path, part: str) -> None:
    file = tmp_path / "list.json"
    file.write_text(json.dumps({**measured(), part: list(measured()[part])}))
    with pytest.raises(ConfigError, match=f"its {part} are no JSON object"):
        read_result(file)
