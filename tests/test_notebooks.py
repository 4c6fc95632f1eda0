"""The notebooks run from top to bottom, and show what they are for; what is committed has its outputs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
MOST_BYTES = 600_000


def load_execute() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_execute", NOTEBOOKS / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXECUTE = load_execute()


def outputs(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """(cell id, output) of each."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            yield cell.id, output


def shown(notebook: NotebookNode, kind: str) -> list[str]:
    """All outputs of a media type."""
    return ["".join(one.data[kind]) for _, one in outputs(notebook) if kind in one.get("data", {})]


def printed(notebook: NotebookNode, cell: str) -> str:
    return "".join(one.text for name, one in outputs(notebook) if name == cell and one.output_type == "stream")


def test_the_tutorial_is_there() -> None:
    assert "generation_tutorial.ipynb" in [path.name for path in PATHS]


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[NotebookNode, Path]:
    """A notebook after a run without an error, and the folder that it ran in."""
    notebook = nbformat.read(request.param, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    folder = tmp_path_factory.mktemp("notebook")
    return EXECUTE.execute(notebook, folder), folder


def test_notebooks_run_and_show_pictures(executed: tuple[NotebookNode, Path]) -> None:
    notebook, _ = executed
    assert len(shown(notebook, "image/png")) >= 3
    assert [one.startswith("<svg") and "Lazy compiler" in one for one in shown(notebook, "image/svg+xml")] == [True]
    assert [one.startswith("<iframe srcdoc=") for one in shown(notebook, "text/html")] == [True, True]
    errors = [one for _, one in outputs(notebook) if one.output_type == "error" or one.get("name") == "stderr"]
    assert errors == []


def test_what_the_tutorial_says_is_what_happens(executed: tuple[NotebookNode, Path]) -> None:
    notebook, folder = executed
    assert "⟨corpus⟩" in printed(notebook, "stream")
    assert "\n        " in printed(notebook, "deep")  # a document at depth 2
    assert "0 reused" in printed(notebook, "reuse").splitlines()[0]
    assert all(" 0 reused" not in line for line in printed(notebook, "reuse").splitlines()[1:])
    assert "parser (corpus): Supply" in printed(notebook, "ask") and "'parser': 'supplied'" in printed(notebook, "ask")
    assert "(folded, 1.00)" in printed(notebook, "titles") and "(edit, " in printed(notebook, "titles")
    assert {path.name for path in (folder / "out").iterdir()} == {"graph.html", "attention.html", "attention.png"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_committed_notebooks_have_their_outputs_and_are_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert shown(notebook, "image/png") and shown(notebook, "image/svg+xml")
    assert path.stat().st_size < MOST_BYTES
    assert [one for _, one in outputs(notebook) if one.output_type == "error" or one.get("name") == "stderr"] == []


def test_a_cell_that_fails_fails_the_run(tmp_path: Path) -> None:
    notebook = new_notebook(cells=[new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        EXECUTE.execute(notebook, tmp_path)


def test_it_is_this_interpreter_that_runs_whatever_kernels_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["false"], "display_name": "Broken", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = new_notebook(cells=[new_code_cell("import sys\nprint(sys.executable)")])
    EXECUTE.execute(notebook, tmp_path)
    assert notebook.cells[0].outputs[0].text.strip() == sys.executable


def test_executing_from_the_command_line_writes_outputs_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("print(6 * 7)", id="answer")]), path)
    monkeypatch.setattr("sys.argv", ["execute.py", str(path)])
    EXECUTE.main()
    assert printed(nbformat.read(path, as_version=4), "answer") == "42\n"
    assert capsys.readouterr().out.startswith("one.ipynb: ")
