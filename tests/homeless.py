"""A user without a home, as where a container runs as an id that has no name."""

from __future__ import annotations

from pathlib import Path

import pytest


def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
