"""bench/: what retention, reuse, link events and compaction are measured by does what the scripts say."""

from __future__ import annotations

import json
import random
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ds2ds import Runtime
from ds2ds.engine import results as results_module
from ds2ds.engine import scheduler as scheduler_module
from ds2ds.kernels.compaction import check_moves

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import compaction
import link_event
import offline_bound
import retention
import reuse
import reuse_models
import typer
from read_results import retention_table, reuse_table

CPU = torch.device("cpu")
MODEL = "1x64"
COST = retention.Cost(2e-3, 1e-4)

pytestmark = pytest.mark.usefixtures("threads_as_before")


def run(script: Callable[..., None], arguments: str) -> dict[str, Any]:
    """Run a script's command; returns the JSON of its last line."""
    app = typer.Typer()
    app.command()(script)
    done = CliRunner().invoke(app, arguments.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def ints(*values: int) -> offline_bound.Ints:
    return np.array(values, dtype=np.int64)


# The bound of retention


def most(trace: list[int], sizes: list[int], weights: list[int], capacity: int) -> int:
    """By trying all that could be kept after each request."""

    @cache
    def best(at: int, kept: frozenset[int]) -> int:
        if at == len(trace):
            return 0
        asked = trace[at]
        found = weights[asked] if asked in kept else 0
        others = sorted(kept - {asked})
        chosen = (frozenset(o for i, o in enumerate(others) if bits >> i & 1) for bits in range(1 << len(others)))
        fitting = (some | {asked} for some in chosen if sum(sizes[o] for o in some) + sizes[asked] <= capacity)
        return found + max(best(at + 1, fits) for fits in fitting)

    return best(0, frozenset())


def in_parts(trace: list[int], sizes: list[int], weights: list[int], capacity: int) -> float:
    """The linear program as it is defined: a share of each repeat, and a row of the matrix for each request."""
    from scipy.optimize import linprog

    pairs = list(zip(*offline_bound.repeats(ints(*trace)), strict=True))
    covers = [[sizes[trace[first]] * (first < at < second) for first, second in pairs] for at in range(len(trace))]
    room = [capacity - sizes[asked] for asked in trace]
    return -linprog([-weights[trace[first]] for first, _ in pairs], covers, room, bounds=(0, 1)).fun


def belady(trace: list[int], capacity: int) -> int:
    """Hits of a cache of so many items that lets go whichever is asked for again the latest."""
    kept: set[int] = set()
    hits = 0
    for at, asked in enumerate(trace):
        hits += asked in kept
        kept.add(asked)
        if len(kept) > capacity:
            rest = trace[at + 1 :]
            kept.remove(max(kept - {asked}, key=lambda o: rest.index(o) if o in rest else len(trace)))
    return hits


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_of_what_to_keep_passes_the_bound(seed: int) -> None:
    pytest.importorskip("scipy")
    draw = random.Random(seed)
    sizes, trace = [draw.randint(1, 4) for _ in range(5)], [draw.randrange(5) for _ in range(14)]
    for weights in ([1] * 5, sizes, [draw.randint(1, 9) for _ in range(5)]):
        whole = most(trace, sizes, weights, 6)
        bound = offline_bound.most_hits(ints(*trace), ints(*sizes), ints(*weights), 6)
        everything = sum(weights[trace[at]] for at in offline_bound.repeats(ints(*trace))[1])
        assert whole - 1e-6 <= bound <= everything + 1e-6
        assert bound == pytest.approx(in_parts(trace, sizes, weights, 6))


@pytest.mark.parametrize("seed", range(6))
def test_where_all_are_of_one_size_the_bound_is_beladys(seed: int) -> None:
    pytest.importorskip("scipy")
    draw = random.Random(seed)
    trace = [min(draw.randrange(20), draw.randrange(20)) for _ in range(300)]
    for capacity in (1, 2, 5, 12, 20):
        bound = offline_bound.most_hits(ints(*trace), np.full(20, 3), np.ones(20, np.int64), 3 * capacity)
        assert bound == pytest.approx(belady(trace, capacity))


def test_what_is_asked_for_twice_in_a_row_is_a_hit_in_any_cache() -> None:
    assert offline_bound.most_hits(ints(0, 0, 1, 1, 1), ints(2, 2), ints(1, 10), 2) == 21


def test_a_bound_needs_a_cache_that_holds_each_item() -> None:
    with pytest.raises(ValueError, match="an item of size 7 does not fit a cache of 6"):
        offline_bound.most_hits(ints(0, 1), ints(2, 7), ints(1, 1), 6)


# Traces and their replay


def lengths(count: int = 60) -> offline_bound.Ints:
    return np.random.default_rng(1).integers(1, 200, count)


def test_one_off_requests_come_between_the_others_and_leave_them_as_they_are() -> None:
    plain, mixed = (retention.zipf(lengths(), 1.0, 600, once) for once in (0.0, 0.4))
    assert mixed.trace[mixed.trace < 60].tolist() == plain.trace.tolist()
    rare = mixed.trace[mixed.trace >= 60]
    assert sorted(rare) == list(range(60, 460))
    assert set(mixed.lengths[60:]) <= set(lengths())
    assert mixed.total == plain.total == (600, int(lengths()[plain.trace].sum()))
    assert mixed.repeats == plain.repeats
    # They are everywhere: about as many in each quarter.
    assert all(70 < (quarter >= 60).sum() < 130 for quarter in np.array_split(mixed.trace, 4))


def test_the_popular_come_as_often_as_zipfs_law_has_it() -> None:
    counts = np.bincount(retention.zipf(lengths(5), 1.0, 20_000).trace, minlength=5)
    np.testing.assert_allclose(counts / 20_000, np.array([60, 30, 20, 15, 12]) / 137, atol=0.015)


def test_the_corpus_lengths_start_with_the_most_linked() -> None:
    found = retention.foldoc_lengths()
    assert len(found) == 11_836
    assert found.max() == retention.LONGEST and found.min() > 0
    assert found[:100].mean() > found.mean()


def test_a_replay_of_equal_sizes_under_lru_is_a_plain_lru() -> None:
    requests = retention.zipf(np.full(40, 16), 0.8, 500, 0.3)
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for asked in requests.trace.tolist():
        hits += asked in kept
        kept[asked] = None
        kept.move_to_end(asked)
        if len(kept) > 10:
            kept.popitem(last=False)
    found = retention.replay(requests, "lru", 10 * 16, COST)
    assert found["documents"] == hits
    assert found["tokens"] == 16 * hits
    assert found["computed"] == 16 * (len(requests.trace) - hits)


def test_an_arena_that_holds_all_finds_every_repeat() -> None:
    requests = retention.zipf(lengths(), 1.0, 400)
    for name in ("lru", "gdsf"):
        found = retention.replay(requests, name, int(requests.sizes.sum()), COST)
        assert (found["documents"], found["tokens"]) == requests.repeats
        assert found["compactions"] == found["moved"] == 0


@pytest.mark.parametrize("once", [0.0, 0.4])
def test_no_policy_passes_the_ceiling(once: float) -> None:
    pytest.importorskip("scipy")
    rates = retention.measure(retention.zipf(lengths(), 0.9, 800, once), 1600, COST)
    for unit in ("documents", "tokens"):
        found = rates[unit]
        assert 0 < found["lru"] < found["ceiling"] <= rates["repeats"][unit]
        assert found["gdsf"] < found["ceiling"]


def test_the_retention_command(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    file = tmp_path / "retention.json"
    printed = run(retention.main, f"--requests 300 --exponent 1.0 --once 0.4 --arena 0.01 --output {file}")
    assert json.loads(file.read_text()) == printed
    (result,) = printed["results"]
    assert (result["exponent"], result["once"], result["arena"]) == (1.0, 0.4, 0.01)
    assert result["slots"] <= 0.01 * printed["settings"]["tokens"]
    _, _, row = retention_table(file, 1.0).splitlines()
    shown = [f"{result['tokens'][name]:.1%}" for name in ("lru", "gdsf", "ceiling")]
    assert row == "| 40% | 1% | " + " | ".join(shown) + " |"


# Reuse


@cache
def runtime() -> Runtime:
    return reuse_models.make_runtime(MODEL, CPU, torch.float32)


def raced(shape: str, links: int = 3, length: int = 20) -> tuple[dict[str, Any], dict[str, Any]]:
    """A race's figures, cold and warm."""
    request = reuse.make_request(runtime(), reuse_models.synthetic(links, length), shape, links)
    result = reuse.race(request, 2)
    assert not runtime().engine.store.documents()
    return result["cold"], result["warm"]


def test_direct_reuses_all_that_is_linked() -> None:
    cold, warm = raced("direct")
    assert warm["tokens_reused"] == 3 * 20
    assert cold["tokens_prefilled"] == 3 * 20 + warm["tokens_prefilled"]
    # The linked documents do not read one another, so they are prefilled in one step; then the root.
    assert (cold["tokens_reused"], cold["steps"], warm["steps"]) == (0, 2, 1)


def test_through_one_needs_nothing_but_the_one() -> None:
    cold, warm = raced("through one")
    hub = warm["tokens_reused"]
    assert cold["tokens_prefilled"] == 3 * 20 + hub + warm["tokens_prefilled"]
    assert warm["tokens_prefilled"] < 30
    # Those that the one links, the one, the root.
    assert (cold["tokens_reused"], cold["steps"], warm["steps"]) == (0, 3, 1)


def test_asked_again_computes_one_token() -> None:
    cold, warm = raced("asked again")
    assert warm["tokens_prefilled"] == 1
    assert warm["tokens_reused"] == cold["tokens_prefilled"] - 1


def test_prompts_differ_unless_the_same_is_asked_again() -> None:
    requests = [reuse.make_request(runtime(), reuse_models.synthetic(2, 5), shape, 2) for shape in reuse.SHAPES]
    assert [len({request.prompt() for _ in range(3)}) for request in requests] == [3, 3, 1]


def test_documents_that_are_not_brought_in_are_an_error() -> None:
    library = reuse_models.synthetic(3, 20)
    request = reuse.make_request(runtime(), library, "direct", 3)
    request.settings["max_auxiliary_documents"] = 2
    with pytest.raises(RuntimeError, match="was to bring in 3 documents"):
        request.run()


def test_foldocs_documents_can_be_linked_as_they_are() -> None:
    library = reuse_models.foldoc(20)
    assert library.titles == reuse_models.foldoc(20).titles
    for title, length in zip(library.titles, library.lengths, strict=True):
        assert library.corpus.resolve(title) == title
        assert len(library.corpus.get_document(title)) == length
    assert library.with_hub([1, 2]).get_document(reuse_models.HUB) == [1, 2]
    assert library.corpus.get_document("no such title") is None


def test_the_packaged_model_computes_what_it_does_with_its_own_limit() -> None:
    long = reuse_models.make_runtime(reuse_models.DEMO, CPU, torch.float32)
    assert long.model.config.max_seq_len == reuse_models.MAX_SEQ_LEN
    short = Runtime.from_pretrained(reuse_models.DEMO, "cpu")
    ours, theirs = (
        one.generate("A [linker](linker) is", corpus="demo", max_new_tokens=8, temperature=0.0) for one in (long, short)
    )
    assert ours.root_document.tokens == theirs.root_document.tokens


def test_the_reuse_command(tmp_path: Path) -> None:
    printed = run(
        reuse.main,
        f"--model {MODEL} --link 1 --link 2 --length 8 --rounds 1 --threads 1 --output {tmp_path}",
    )
    assert json.loads((tmp_path / "reuse_cpu.json").read_text()) == printed
    asked = [(result["shape"], result["links"], result["linked_tokens"]) for result in printed["results"]]
    assert asked == [(shape, links, 8 * links) for shape in reuse.SHAPES for links in (1, 2)]
    assert all(result["times_faster"] > 0 for result in printed["results"])
    assert reuse_table(tmp_path / "reuse_cpu.json").count(f"| {MODEL} |") == 6


# Link events


def test_a_links_extra_is_what_three_steps_take_beyond_plain_tokens() -> None:
    plain = {"total": 10.0, "follow": 1.0, "look up": 0.5}
    tokens = [dict(plain) for _ in range(20)]
    tokens[8] = {"total": 14.0, "follow": 4.0, "look up": 0.5}
    tokens[10] = {"total": 15.0, "follow": 1.0, "look up": 2.5}
    found = link_event.extra(tokens, 8)
    assert found == pytest.approx({"total": 9.0, "follow": 3.0, "look up": 2.0, "plain": 10.0})


def test_a_stream_writes_its_script_and_leaves_the_engine_as_it_was() -> None:
    library = reuse_models.synthetic(4, 16)
    before = results_module.sample, scheduler_module.plan
    found = link_event.stream(runtime(), library)
    assert {kind: len(links) for kind, links in found.items()} == {"resident": 2, "not resident": 2}
    assert (results_module.sample, scheduler_module.plan) == before
    assert "_send" not in vars(runtime().engine.scheduler)
    assert not runtime().engine.store.documents()


def test_the_link_event_command(tmp_path: Path) -> None:
    printed = run(
        link_event.main,
        f"--model {MODEL} --link 2 --length 16 --rounds 1 --threads 1 --output {tmp_path}",
    )
    assert json.loads((tmp_path / "link_event_cpu.json").read_text()) == printed
    (result,) = printed["results"]
    assert result["model"] == MODEL
    for kind in link_event.KINDS:
        assert result[kind]["links"] == 1
        assert result[kind]["plain_us"] > 0


# Compaction


def test_of_a_fragmented_arena_every_second_extent_moves_down() -> None:
    moves = compaction.fragmented(64, 4, [4, 6, 3, 8, 16, 12, 100])
    # Extents of 4, 8, 4, 8, 16 and 12 slots; the first, third and fifth are freed.
    assert moves == [(4, 0, 8), (16, 8, 8), (40, 16, 12)]
    check_moves(moves, 64)


def test_the_bytes_moved_are_those_of_all_planes() -> None:
    bench = compaction.Bench("2x128", 64, CPU, torch.float32, [4, 6, 3, 8, 16, 12, 100])
    assert bench.moved_bytes == bench.moved_slots * 2 * 2 * 128 * 4 == bench.source.nbytes
    found = compaction.measure(bench, 2)
    assert found["moves"] == len(bench.moves) > 0
    assert found["gb_per_second"] >= 0 and found["share_of_copy"] > 0


def test_the_compaction_command(tmp_path: Path) -> None:
    printed = run(compaction.main, f"--size {MODEL} --slots 1024 --rounds 1 --threads 1 --output {tmp_path}")
    assert json.loads((tmp_path / "compaction_cpu.json").read_text()) == printed
    (result,) = printed["results"]
    assert result["slots"] == 1024 and result["moved_bytes"] == result["moved_slots"] * 2 * 64 * 4


@pytest.mark.parametrize(
    ("script", "bad"),
    [
        (retention.main, "--once 1.0"),
        (reuse.main, "--shape sideways"),
        (reuse.main, "--link 65"),
        (reuse.main, "--model small"),
        (link_event.main, "--model 1x100"),
        (compaction.main, "--size 0x64"),
    ],
)
def test_what_cannot_be_measured_is_refused(script: Callable[..., None], bad: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(script)
    done = CliRunner().invoke(app, [*bad.split(), "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert not list(tmp_path.iterdir())
