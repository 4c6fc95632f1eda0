"""What every benchmark ends with: a table to read, a file to keep, and the same JSON as the last line.

One that is ended early leaves in the file what it has measured till then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ds2ds.files import atomic_write_text


def keep(measured: dict[str, Any], file: Path) -> None:
    """Write what has been measured so far, plain JSON types, to the file."""
    atomic_write_text(file, json.dumps(measured, indent=1) + "\n")


def report(table: Table, measured: dict[str, Any], file: Path) -> None:
    """Print the table, `keep` what was measured, and print it."""
    keep(measured, file)
    Console(width=160).print(table)
    print(json.dumps(measured))
