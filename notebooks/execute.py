"""Run notebooks and keep what they show: `python notebooks/execute.py [NOTEBOOK ...]`, all of this folder by default.

They are run by this interpreter, in a folder that is thrown away. Sources stay as they are; outputs are written back.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent


def execute(notebook: NotebookNode, folder: Path, timeout: int = 300) -> NotebookNode:
    """Run all cells in a fresh kernel of this interpreter, in `folder`; outputs are put into `notebook`.

    Args:
        timeout: most seconds of one cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    # No folder with kernels of the user's: "python3" is then the interpreter that runs this.
    kernels = KernelSpecManager(kernel_dirs=[])
    connection = str(folder / ".kernel.json")
    manager = AsyncKernelManager(kernel_spec_manager=kernels, kernel_name="python3", connection_file=connection)
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / ".ipython")})
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    for path in parser.parse_args().notebooks:
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        # Which Python it was is of no interest, and differs from one machine to the next.
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
