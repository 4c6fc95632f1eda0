"""What a link format is: how links are written in a kind of document, and how they are found in a stream of bytes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ds2ds.documents.link_scanner import ScannedLink


class Scanner(Protocol):
    """Reads one document after another, each byte once.

    A byte costs O(1) amortised, and what is kept of the stream is bounded by what one link may be, or one paragraph.
    """

    def feed(self, data: bytes) -> list[ScannedLink]:
        """The links that are complete in `data`, in order. Pieces may have any size and may split UTF-8 characters.

        They do not overlap, except where one statement makes several: those have its start and end, and come at once.
        """
        ...

    def reset(self) -> None:
        """The document ends: no link spans this point. What is incomplete is none: no token comes after it to read
        its target. Offsets go on."""
        ...


@runtime_checkable
class LinkFormat(Protocol):
    """How the links of a corpus and its model are written.

    One of your own is an object with these two, registered under the entry-point group `ds2ds.link_formats` or given
    where a name would be.
    """

    @property
    def name(self) -> str:
        """What a checkpoint's `link_detector` and a corpus' metadata call it."""
        ...

    def scanner(self, document_title: str = "") -> Scanner:
        """A scanner for a document of this title, against which relative targets are resolved."""
        ...
