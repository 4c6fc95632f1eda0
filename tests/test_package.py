"""The package as a whole: its names, what importing it costs, and which floor may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ds2ds

ROOT = Path(__file__).parent.parent

# DESIGN 5's table, and the front door.
TABLE = (
    "DocumentCorpus",
    "GraphIndex",
    "PretokShardedBackend",
    "normalize_title",
    "generate_title_hash",
    "create_filename",
    "strip_hash",
    "verify_title_hash",
    "GeneratedDocument",
    "GenerationResult",
    "LinkDetector",
    "DetectedLink",
    "sample_token",
    "greedy_sample",
    "DocumentContext",
    "GenerationConfig",
    "SingleDocumentGenerator",
    "PromptLinkProcessor",
    "LinkedDocumentGenerator",
    "DS2DSModel",
    "Runtime",
    "Tokenizer",
    "Grant",
    "Backend",
    "AsyncBackend",
    "AttentionMap",
    "link_graph_html",
    "link_graph_svg",
)

FLOORS = [
    {"kernels", "native", "errors", "extras", "files", "workplace", "environment", "data"},
    {"tokenizer"},
    {"documents"},
    {"corpus"},
    {"cache"},
    {"attention"},
    {"model"},
    {"engine"},
    {"generation", "analysis", "pictures"},
    {"backend"},
    {"texts"},
    {"runtime"},
    {"async_runtime", "event_stream", "bench", "adapters"},
    {"server"},
    {"cli", "__main__"},
]
LIGHT = ("corpus", "documents", "tokenizer", "errors", "files")

# DS2DSModel.generate is the one door that leads upstairs.
UPWARD_IN_FUNCTIONS = {("model/ds2ds_model.py", "ds2ds.runtime")}


@pytest.mark.parametrize("name", TABLE)
def test_every_name_of_the_design_is_importable(name: str) -> None:
    assert getattr(ds2ds, name).__name__ == name
    assert name in ds2ds.__all__


def test_every_exported_name_resolves() -> None:
    for name in ds2ds.__all__:
        assert getattr(ds2ds, name) is not None
    assert set(ds2ds.__all__) <= set(dir(ds2ds))


def test_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse((ROOT / "runtime/__init__.py").read_text())
    declared = {}
    for block in tree.body:
        if isinstance(block, ast.If):
            for node in block.body:
                assert isinstance(node, ast.ImportFrom) and node.module is not None
                declared |= {alias.asname: node.module for alias in node.names}
    assert declared
    for name, module in declared.items():
        assert module == f"ds2ds.{ds2ds._HOME[name]}", name
    # Errors need no declaration to be found by name, but all else does.
    assert set(ds2ds.__all__) - set(declared) == set(ds2ds._MODULES["errors"])


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ds2ds' has no attribute 'nothing'"):
        ds2ds.nothing  # noqa: B018


def in_fresh_interpreter(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_and_opening_a_corpus_do_not_load_torch() -> None:
    code = "import sys, ds2ds; c = ds2ds.DocumentCorpus('demo'); print(len(c) > 0, 'torch' in sys.modules)"
    assert in_fresh_interpreter(code) == "True False\n"


def test_import_alone_loads_neither_numpy_nor_tiktoken() -> None:
    code = "import sys, ds2ds; print({'numpy', 'tiktoken', 'torch'} & set(sys.modules))"
    assert in_fresh_interpreter(code) == "set()\n"


# Imports


def sources() -> list[Path]:
    files = [*(ROOT / "runtime").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    assert len(files) > 40
    return sorted(files)


def name_of(path: Path) -> str:
    """The dotted name under which a file is installed."""
    top, *parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ["ds2ds", *(["kernels"] if top == "kernels" else []), *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether the import waits: in a function, or for type checkers) of all imports."""
    package = name_of(path) if path.stem == "__init__" else name_of(path).rpartition(".")[0]

    def visit(node: ast.AST, deferred: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "ds2ds":  # `from ds2ds import name`: the name's own module, or a folder
                names = [alias.name for alias in node.names if not alias.name.startswith("__")]
                yield from ((f"ds2ds.{ds2ds._HOME.get(name, name)}", deferred) for name in names)
            else:
                yield module, deferred
        waits = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        waits |= isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deferred or waits)

    return visit(ast.parse(path.read_text()), False)


def floor(module: str) -> int:
    part = module.split(".")[1]
    return next(index for index, floor in enumerate(FLOORS) if part in floor)


def test_imports_run_downwards_only() -> None:
    upward, deferred_upward = [], set()
    for path in sources():
        here = name_of(path)
        if here == "ds2ds":
            continue  # the lazy front; its imports are for type checkers
        for module, deferred in imports(path):
            if not module.startswith("ds2ds."):
                continue
            if floor(module) > floor(here):
                edge = (str(path.relative_to(ROOT / "runtime")), module)
                deferred_upward.add(edge) if deferred else upward.append(edge)
    assert upward == []
    assert deferred_upward == UPWARD_IN_FUNCTIONS


def test_kernels_import_nothing_of_ours() -> None:
    for path in sources():
        if name_of(path).startswith("ds2ds.kernels"):
            ours = {module for module, _ in imports(path) if module.startswith("ds2ds")}
            assert all(module.startswith("ds2ds.kernels") for module in ours), (path, ours)


def test_every_folder_has_a_floor() -> None:
    for path in sources():
        if name_of(path) != "ds2ds":
            floor(name_of(path))  # StopIteration: a new folder must be given its floor here and in DESIGN


def test_light_floors_import_no_torch() -> None:
    for path in sources():
        if name_of(path) != "ds2ds" and name_of(path).split(".")[1] in LIGHT:
            assert not [m for m, deferred in imports(path) if m.split(".")[0] == "torch" and not deferred], path
