"""Markdown's inline links, `[text](Target)`: see `ds2ds.documents.link_scanner`."""

from __future__ import annotations

from dataclasses import dataclass

from ds2ds.documents.link_scanner import LinkScanner


@dataclass(frozen=True)
class Markdown:
    name: str = "markdown"

    def scanner(self, document_title: str = "") -> LinkScanner:
        return LinkScanner()
