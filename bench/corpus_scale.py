"""Does opening a corpus cost the same whatever its size? A synthetic corpus of 1,000,000 linked documents.

    python bench/corpus_scale.py [--documents N] [--folder KEEP]

Writes the corpus (to a temporary folder unless told), then opens it in fresh processes and measures, in each: the time
to open, the memory above that of the bare interpreter (imports included), and single look-ups of titles picked at
random. Prints the medians; at full size writes bench/results/corpus_scale.json.
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

RESULT = Path(__file__).parent / "results" / "corpus_scale.json"
LIMITS = {"open_ms": 100.0, "memory_mb": 60.0, "look_up_us": 50.0}
DOCUMENTS = 1_000_000
PROCESSES = 5
LOOK_UPS = 20_000
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


def build(folder: Path, documents: int) -> float | None:
    """Write the corpus and return the seconds it took; None if it is there already."""
    from ds2ds.corpus.build.writer import SourceDocument, write_corpus

    if (folder / "metadata.json").is_file():
        return None

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

    def median_us(look_up: Callable[[str], object], names: list[str], expected: bool) -> float:
        times = []
        for name in names:
            before = time.perf_counter_ns()
            found = look_up(name)
            times.append(time.perf_counter_ns() - before)
            if (found is not None and found is not False) != expected:
                raise RuntimeError(f"{name!r}: got {found!r}")
        return statistics.median(times) / 1000

    return {
        "import_ms": (imported - start) * 1000,
        "open_ms": (opened - imported) * 1000,
        "memory_mb": memory,
        "look_up_us": median_us(corpus.has_document, known, True),
        "look_up_other_case_us": median_us(corpus.has_document, [name.upper() for name in known], True),
        "look_up_unknown_us": median_us(corpus.has_document, unknown, False),
        "get_document_us": median_us(corpus.get_document, known, True),
        "memory_after_look_ups_mb": memory_mb() - bare,
        "of_it_not_file_pages_mb": memory_mb("RssAnon") - bare_anonymous,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--folder", type=Path, help="keep the corpus here, or use the one that is here")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return

    # It loads torch, which the measured processes must not.
    from ds2ds.environment import environment

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "corpus"
        build_seconds = build(folder, arguments.documents)
        command = [sys.executable, __file__, "--measure", str(folder)]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(PROCESSES)]
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        lines = (folder / "tokenized_graph.jsonl").read_bytes().count(b"\n")
    medians = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    result = {
        "documents": lines,
        **medians,
        "limits": LIMITS,
        "within_limits": all(medians[name] < limit for name, limit in LIMITS.items()),
        "build_seconds": build_seconds and round(build_seconds, 1),
        "bytes": sizes,
        "processes": PROCESSES,
        "look_ups": LOOK_UPS,
        "sqlite": sqlite3.sqlite_version,
        "environment": environment(),
    }
    if lines >= DOCUMENTS:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
