"""What a text and a title that are given must be; without torch, for the command line."""

from __future__ import annotations

from typing import Any

from ds2ds.corpus.names import is_unicode
from ds2ds.errors import ConfigError


def check_text(name: str, value: Any) -> None:
    """Raises ConfigError: it is blank, or no text."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} must be a string that is not blank, got {value!r}")
    if not is_unicode(value):
        raise ConfigError(f"{name} must be UTF-8 text, got {value[:80]!r}")


def check_title(name: str, value: Any) -> None:
    """Raises ConfigError: it is blank, or no text, or more than one line: no heading holds it, no link leads to it."""
    check_text(name, value)
    if value.splitlines() != [value]:
        raise ConfigError(f"{name} must be one line, got {value!r}")
