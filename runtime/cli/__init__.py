"""The command line: ``ds2ds corpus``, ``ds2ds model``, ``ds2ds generate``."""

from ds2ds.cli.main import app, main

__all__ = ["app", "main"]
