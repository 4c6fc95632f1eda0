"""What scanners have in common whose states are methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from ds2ds.documents.link_scanner import ScannedLink

State: TypeAlias = Callable[[bytes, int, int, list[ScannedLink]], int]
"""Reads `data` from `at` on while the state stays, adds the links that are complete to `links`, and returns where it
stopped; `offset` is where `data` begins in the stream."""


class StateScanner(ABC):
    """Reads a stream once, in pieces of any size.

    Attributes:
        position: bytes fed so far.
    """

    _read: State
    """The state that it is in."""

    def __init__(self) -> None:
        self.position = 0
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """The document ends: what is open is no link."""

    def feed(self, data: bytes) -> list[ScannedLink]:
        """The links that are complete in `data`, in order."""
        offset, at = self.position, 0
        self.position += len(data)
        links: list[ScannedLink] = []
        while at < len(data):
            at = self._read(data, at, offset, links)
        return links
