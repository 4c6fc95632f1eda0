"""Packages that only some users need: the extras of setup.py."""

from __future__ import annotations

from importlib import import_module

from ds2ds.errors import ConfigError


def require_extra(extra: str, what: str, *modules: str) -> None:
    """Import the modules of an extra, before anything else is begun.

    Args:
        what: what needs them.

    Raises:
        ConfigError: some are not installed.
    """
    missing: list[str] = []
    for module in modules:
        try:
            import_module(module)
        except ImportError:
            missing.append(module)
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}: pip install 'ds2ds[{extra}]'")
