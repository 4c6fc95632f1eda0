"""Does opening a corpus cost the same whatever its size? A synthetic corpus of 1,000,000 linked documents.

    python bench/corpus_scale.py [--documents N] [--folder KEEP]
    python bench/corpus_scale.py --documents 3500000 --tokens 9e9 --shards 90

Writes the corpus (to a temporary folder unless told), then opens it in fresh processes and measures, in each: the time
to open, the memory above that of the bare interpreter (imports included), and single look-ups of titles picked at
random. Prints the medians; at full size writes bench/results/corpus_scale.json.

With --tokens the shards are sparse files of so many tokens in all (``sparse_corpus``), ten links a document, and the
corpus comes without its index, as another program's does: the first process that opens it builds it, which is measured
too. Writes bench/results/corpus_scale_DOCUMENTS.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparse_corpus import SparseCorpus

RESULTS = Path(__file__).parent / "results"
LIMITS = {"open_ms": 100.0, "memory_mb": 60.0, "look_up_us": 50.0}
DOCUMENTS = 1_000_000
PROCESSES = 5
LOOK_UPS = 20_000
CHECKED = 500
"""Documents whose tokens are compared with what was written."""

WORDS = ["amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "heron"]


def title(number: int) -> str:
    first, second = WORDS[number % 8], WORDS[number // 8 % 8]
    return f"{first.capitalize()} {second} {number}"


def memory_mb(kind: str = "VmRSS") -> float:
    """Resident memory of this process (Linux); of kind RssAnon: without pages of files, which the system may drop."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {kind}")


def build(folder: Path, documents: int, plan: SparseCorpus | None = None) -> float | None:
    """Write the corpus and return the seconds it took; None if it is there already."""
    from ds2ds.corpus.build.writer import SourceDocument, write_corpus

    if (folder / "metadata.json").is_file():
        return None
    if plan is not None:
        start = time.perf_counter()
        plan.write(folder)
        return time.perf_counter() - start

    def sources() -> Iterator[SourceDocument]:
        for number in range(documents):
            links = [title((number * step + 7) % documents) for step in (1, 31, 1009)]
            body = f"Document {number} is about " + ", ".join(f"[{name}]({name})" for name in links) + "."
            yield SourceDocument(title(number), body)

    def progress(done: int) -> None:
        if done % (documents // 10 or 1) == 0:
            print(f"written {done:,} of {documents:,}", file=sys.stderr)

    start = time.perf_counter()
    workers = os.cpu_count() or 1
    write_corpus(folder, sources(), workers=workers, search=False, force=folder.exists(), progress=progress)
    return time.perf_counter() - start


def index(folder: Path) -> dict[str, float]:
    """Open a corpus for the first time, in a process of its own."""
    from ds2ds.corpus.document_corpus import DocumentCorpus

    before, start = memory_mb(), time.perf_counter()
    DocumentCorpus(folder, lambda done, total: print(f"index: {done} of {total}", file=sys.stderr)).close()
    return {"seconds": time.perf_counter() - start, "peak_memory_mb": memory_mb("VmHWM") - before}


def measure(folder: Path) -> dict[str, float]:
    """Run in a process of its own, which has imported nothing but the standard library's modules above."""
    bare, bare_anonymous = memory_mb(), memory_mb("RssAnon")
    start = time.perf_counter()
    from ds2ds.corpus.document_corpus import DocumentCorpus

    imported = time.perf_counter()
    corpus = DocumentCorpus(folder)
    opened = time.perf_counter()
    memory = memory_mb() - bare

    picks = random.Random(os.getpid())
    known = [title(picks.randrange(len(corpus))) for _ in range(LOOK_UPS)]
    unknown = [f"{name} nowhere" for name in known]

    def times_us(look_up: Callable[[str], object], names: list[str], expected: bool) -> list[float]:
        times = []
        for name in names:
            before = time.perf_counter_ns()
            found = look_up(name)
            times.append((time.perf_counter_ns() - before) / 1000)
            if (found is not None and found is not False) != expected:
                raise RuntimeError(f"{name!r}: got {found!r}")
        return times

    def seconds(call: Callable[[], object]) -> float:
        before = time.perf_counter()
        call()
        return time.perf_counter() - before

    look_ups = times_us(corpus.has_document, known, True)
    reads = times_us(corpus.get_document, random.Random(0).sample(known, len(known)), True)
    return {
        "import_ms": (imported - start) * 1000,
        "open_ms": (opened - imported) * 1000,
        "memory_mb": memory,
        "look_up_us": statistics.median(look_ups),
        "look_up_p99_us": statistics.quantiles(look_ups, n=100)[98],
        "look_up_other_case_us": statistics.median(times_us(corpus.has_document, [n.upper() for n in known], True)),
        "look_up_unknown_us": statistics.median(times_us(corpus.has_document, unknown, False)),
        "get_document_us": statistics.median(reads),
        "get_document_p99_us": statistics.quantiles(reads, n=100)[98],
        "memory_after_look_ups_mb": memory_mb() - bare,
        "of_it_not_file_pages_mb": memory_mb("RssAnon") - bare_anonymous,
        "open_files": len(os.listdir("/proc/self/fd")),
        "totals_ms": seconds(corpus.graph.totals) * 1000,
        "most_linked_seconds": seconds(lambda: corpus.most_linked(100)),
    }


def check(folder: Path, plan: SparseCorpus) -> int:
    """Compare some documents with what was written, those at the shards' ends among them; returns how many."""
    from sparse_corpus import STRIDE

    from ds2ds.corpus.document_corpus import DocumentCorpus

    numbers = {members[-1] // STRIDE * STRIDE for members in plan.shard_members() if members}
    picks = random.Random(0)
    numbers |= {picks.randrange(plan.documents // STRIDE) * STRIDE for _ in range(CHECKED)}
    with DocumentCorpus(folder) as corpus:
        if len(corpus) != plan.documents:
            raise RuntimeError(f"{len(corpus):,} documents, expected {plan.documents:,}")
        for number in numbers:
            found = corpus.get_document(title(number))
            if found is None or found.tolist() != plan.body(number).tolist():
                raise RuntimeError(f"document {number} is not what was written")
    return len(numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--tokens", type=float, help="in all, in sparse shards; default: short texts, written whole")
    parser.add_argument("--shards", type=int, default=90, help="with --tokens")
    parser.add_argument("--folder", type=Path, help="keep the corpus here, or use the one that is here")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for path, measured in ((arguments.measure, measure), (arguments.index, index)):
        if path is not None:
            print(json.dumps(measured(path)))
            return

    # It loads torch, which the measured processes must not.
    from ds2ds.environment import environment

    plan = None
    if arguments.tokens is not None:
        from sparse_corpus import SparseCorpus

        plan = SparseCorpus(arguments.documents, int(arguments.tokens), arguments.shards)
    with tempfile.TemporaryDirectory(dir=arguments.folder and arguments.folder.parent) as temporary:
        folder = arguments.folder or Path(temporary) / "corpus"
        build_seconds = build(folder, arguments.documents, plan)
        indexing = run("--index", folder) if plan is not None else None
        runs = [run("--measure", folder) for _ in range(PROCESSES)]
        files = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
        sizes = {name: size.st_size for name, size in files if plan is None or not name.startswith("shard_")}
        disk = 512 * sum(size.st_blocks for _, size in files)
        lines = count_lines(folder / "tokenized_graph.jsonl")
        sparse = None if plan is None else describe(folder, plan)
    medians = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    result = {
        "documents": lines,
        **medians,
        "limits": LIMITS,
        "within_limits": all(medians[name] < limit for name, limit in LIMITS.items()),
        "build_seconds": build_seconds and round(build_seconds, 1),
        "indexing": indexing and {name: round(value, 1) for name, value in indexing.items()},
        "sparse": sparse,
        "bytes": sizes,
        "bytes_on_disk": disk,
        "processes": PROCESSES,
        "look_ups": LOOK_UPS,
        "sqlite": sqlite3.sqlite_version,
        "environment": environment(),
    }
    if lines >= DOCUMENTS:
        RESULTS.mkdir(exist_ok=True)
        name = "corpus_scale.json" if plan is None else f"corpus_scale_{lines}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def run(what: str, folder: Path) -> dict[str, float]:
    """A measurement in a fresh process."""
    made = subprocess.run([sys.executable, __file__, what, str(folder)], check=True, stdout=subprocess.PIPE)
    return json.loads(made.stdout)


def count_lines(file: Path) -> int:
    with file.open("rb") as opened:
        return sum(block.count(b"\n") for block in iter(lambda: opened.read(1 << 24), b""))


def describe(folder: Path, plan: SparseCorpus) -> dict[str, float]:
    """What is true of a sparse corpus, and how long `ds2ds corpus info` takes to say it."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "ds2ds", "corpus", "info", str(folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - start
    tokens = sum(plan.length(number) for number in range(plan.documents))
    if f"{tokens:,}" not in said:
        raise RuntimeError(f"corpus info does not tell of {tokens:,} tokens: {said}")
    largest = max((folder / f"shard_{shard:06d}.bin").stat().st_size for shard in range(plan.shards))
    return {
        "tokens": tokens,
        "shards": plan.shards,
        "largest_shard_bytes": largest,
        "links": plan.links * plan.documents,
        "documents_checked": check(folder, plan),
        "info_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
