"""Mutation testing: which changes of a module its tests do not notice.

    python tests/mutation/run.py                      # every module of MODULES
    python tests/mutation/run.py eviction rows        # some of them
    python tests/mutation/run.py eviction --by-hand   # without mutmut: the changes of changes.py alone

needs `pip install mutmut` (3.x). mutmut wants to find a package where its name says; here `runtime/` is installed as
`ds2ds`. So each module gets a folder build/mutation/NAME with a real tree `ds2ds/`, copied, and mutmut runs in it, on
the module alone and on the tests that are about it. It changes the bodies of functions only; what stands at the top
of a module, patterns and constants and lambdas, is changed by hand: changes.py. The survivors are printed as diffs and
kept in build/mutation/NAME.txt. What they mean is written down in docs/mutation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from changes import CHANGES

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutation"

# How mutmut records what a mutant's tests came to.
KILLED, SURVIVED, NO_TESTS = (1, 3), 0, 33
TIMED_OUT = (-24, 24, 36, 152, 255, -9, -14)


@dataclass(frozen=True)
class Module:
    """A module to mutate, and the tests about it: fast ones, since most of a run's time is theirs."""

    path: str
    tests: tuple[str, ...]


_SCANNER = ("test_mutants_links", "test_link_scanner", "test_link_scanner_commonmark")
_LATEX = ("test_mutants_latex", "test_link_format_latex")
_CONTEXT = ("test_mutants_context", "test_document_context", "test_document")
_PYTHON = ("test_mutants_link_formats", "test_link_format_python")

MODULES = {
    "link_scanner": Module("ds2ds/documents/link_scanner.py", _SCANNER),
    "link_destination": Module("ds2ds/documents/link_destination.py", _SCANNER),
    "link_detector": Module("ds2ds/documents/link_detector.py", ("test_mutants_links", "test_link_detector")),
    "wikilinks": Module(
        "ds2ds/documents/link_formats/wikilinks.py", ("test_mutants_link_formats", "test_link_format_wikilinks")
    ),
    "python_imports": Module("ds2ds/documents/link_formats/python_imports.py", _PYTHON),
    "python_statement": Module("ds2ds/documents/link_formats/python_statement.py", _PYTHON),
    "latex": Module("ds2ds/documents/link_formats/latex.py", _LATEX),
    "latex_commands": Module("ds2ds/documents/link_formats/latex_commands.py", _LATEX),
    "link_spans": Module("ds2ds/documents/link_spans.py", ("test_link_spans",)),
    "document_context": Module("ds2ds/documents/document_context.py", _CONTEXT),
    "eviction": Module("ds2ds/documents/eviction.py", ("test_mutants_context",)),
    "document": Module("ds2ds/documents/document.py", ("test_mutants_context", "test_document")),
    "host": Module("ds2ds/kernels/sampling/host.py", ("test_mutants_sampling", "test_sampling_kernel")),
    "rows": Module("ds2ds/kernels/sampling/rows.py", ("test_mutants_sampling", "test_sample_token")),
    "elementary": Module("ds2ds/kernels/sampling/elementary.py", ("test_mutants_sampling", "test_elementary")),
    "philox": Module("ds2ds/kernels/sampling/philox.py", ("test_mutants_sampling", "test_philox")),
    "sampling": Module("ds2ds/generation/sampling.py", ("test_mutants_sampling", "test_sample_token")),
}

# Left out: what measures time, draws by the hundred thousand, and reads whole libraries.
_TOO_LONG = "not linear_time and not far_tail and not draws_follow and not same_imports_as_ast"

_CONFIG = """
[tool.mutmut]
source_paths = ["ds2ds"]
only_mutate = [{path}]
also_copy = ["ds2ds"]
pytest_add_cli_args = ["-m", "not slow and not gpu", "-k", {too_long}, "-p", "no:randomly"]
pytest_add_cli_args_test_selection = {tests}
# Mutants may loop for ever: a few times what the tests take is enough to know.
timeout_multiplier = 8.0
timeout_constant = 1.0
use_git_change_detection = false
"""

_PROFILE = """
from hypothesis import settings as _settings

_settings.register_profile("mutation", derandomize=True, max_examples=30, deadline=None, database=None)
_settings.load_profile("mutation")
"""


def prepare(name: str) -> Path:
    """A folder in which mutmut can mutate this module."""
    module = MODULES[name]
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    # The data is large and only read, so it is linked; and in a checkout `kernels` may be a link already.
    shutil.copytree(ROOT / "runtime", folder / "ds2ds", ignore=shutil.ignore_patterns("__pycache__", "kernels", "data"))
    shutil.copytree(ROOT / "kernels", folder / "ds2ds" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "ds2ds" / "data").symlink_to(ROOT / "runtime" / "data")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "tests" / "conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write(_PROFILE)
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + _CONFIG.format(
        path=json.dumps(module.path), tests=json.dumps(tests_of(module)), too_long=json.dumps(_TOO_LONG)
    )
    (folder / "pyproject.toml").write_text(config, encoding="utf-8")
    return folder


def tests_of(module: Module) -> list[str]:
    return [f"tests/{test}.py" for test in module.tests]


def mutate(name: str, children: int) -> str:
    """Run mutmut on one module; returns the report: the counts, and a diff for each mutant that was not killed."""
    module, folder = MODULES[name], prepare(name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    mutmut = [sys.executable, "-m", "mutmut"]
    started = time.monotonic()
    with (BUILD / f"{name}.log").open("w") as log:
        subprocess.run(
            [*mutmut, "run", "--max-children", str(children)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    codes = json.loads((folder / "mutants" / f"{module.path}.meta").read_text())["exit_code_by_key"]
    count = Counter(map(outcome, codes.values()))
    # A mutant that ran out of time may loop for ever, or its tests only took long: it is shown too.
    unkilled = [mutant for mutant, code in codes.items() if outcome(code) != "killed"]
    diffs = subprocess.run(
        [sys.executable, "-c", _SHOW, module.path, *unkilled],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - started
    return f"{name}: {len(codes)} mutants, {dict(count)}, {seconds:.0f} s\n{diffs.stdout}"


_SHOW = """
import sys
from mutmut.mutation.diff_apply import get_diff_for_mutant

path, *mutants = sys.argv[1:]
for mutant in mutants:
    changed = [line for line in get_diff_for_mutant(mutant, path=path).splitlines()[3:] if line[0] in "+-"]
    print(mutant.rpartition(".")[2], *changed, "", sep="\\n")
"""


def change_by_hand(name: str) -> str:
    """Make each of the module's CHANGES in turn; returns the report."""
    folder, module = prepare(name), MODULES[name]
    path = folder / module.path
    source = path.read_text(encoding="utf-8")
    count: Counter[str] = Counter()
    survivors = []
    for old, new in CHANGES.get(name, ()):
        if source.count(old) != 1:
            raise SystemExit(f"{module.path} has {source.count(old)} times, not once: {old}")
        path.write_text(source.replace(old, new), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-o",
            "addopts=",
            "-m",
            "not slow and not gpu",
            "-k",
            _TOO_LONG,
        ]
        done = subprocess.run(
            [*command, *tests_of(module)],
            cwd=folder,
            # Plugins take longer to load than these tests to run.
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(folder),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            capture_output=True,
        )
        count[outcome(done.returncode)] += 1
        if outcome(done.returncode) != "killed":
            survivors.append(f"- {old}\n+ {new}\n")
    return "\n".join([f"{name}, by hand: {count.total()} mutants, {dict(count)}", *survivors])


def outcome(code: int | None) -> str:
    if code in KILLED:
        return "killed"
    if code in TIMED_OUT:
        return "timed out"
    return {SURVIVED: "survived", NO_TESTS: "no tests"}.get(code, f"exit {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; none: all")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--by-hand", action="store_true", help="only those of changes.py, not mutmut's")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.modules if name not in MODULES]
    if unknown:
        parser.error(f"no such module: {', '.join(unknown)}; there are {', '.join(MODULES)}")
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in arguments.modules or MODULES:
        # Eviction has no function that mutmut would change.
        reports = [] if arguments.by_hand or name == "eviction" else [mutate(name, arguments.children)]
        if name in CHANGES:
            reports.append(change_by_hand(name))
        report = "\n".join(reports)
        (BUILD / f"{name}.txt").write_text(report, encoding="utf-8")
        print(report, flush=True)


if __name__ == "__main__":
    main()
