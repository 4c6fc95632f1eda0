"""What every benchmark ends with: a table to read, a file to keep, and the same JSON as the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ds2ds.files import atomic_write_text


def report(table: Table, measured: dict[str, Any], file: Path) -> None:
    """Print the table, write `measured` (plain JSON types) to the file, and print it."""
    Console(width=160).print(table)
    atomic_write_text(file, json.dumps(measured, indent=1) + "\n")
    print(json.dumps(measured))
