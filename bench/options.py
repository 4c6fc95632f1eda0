"""What benchmarks are told on the command line, or one clear error."""

from __future__ import annotations

from typing import Any

import torch
import typer

from ds2ds.errors import ConfigError
from ds2ds.generation.generation_config import parse_device
from ds2ds.model.checkpoint import parse_dtype


def the_device(name: str) -> torch.device:
    """Raises typer.BadParameter where there is no such device."""
    try:
        return parse_device(name)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def the_dtype(name: str, device: torch.device) -> torch.dtype:
    """Raises typer.BadParameter where there is no such dtype."""
    try:
        return parse_dtype(name, device)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def as_arguments(options: dict[str, Any]) -> list[str]:
    """The same options for a worker: another process of the same benchmark."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]
