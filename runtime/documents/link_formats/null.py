"""No links at all, for models that were trained without."""

from __future__ import annotations

from dataclasses import dataclass

from ds2ds.documents.link_scanner import ScannedLink


class _Nothing:
    def feed(self, data: bytes) -> list[ScannedLink]:
        return []

    def reset(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Null:
    name: str = "null"

    def scanner(self, document_title: str = "") -> _Nothing:
        return _Nothing()
