"""A document as a card of the drawing, and in words."""

from __future__ import annotations

from pathlib import Path

from ds2ds.documents.generation_result import GeneratedDocument
from ds2ds.pictures.markup import escape, shorten

CARD = 186
"""Width of a card."""

LOWEST, HIGHEST, SMALL = 42, 74, 26
"""Height of a card, by its tokens; and of a small one."""

SOURCES, OTHER = ("generated", "corpus"), "other"
"""Sources with a colour of their own; and what all others share."""


def card_height(document: GeneratedDocument, most: int, small: bool) -> float:
    """By its tokens, where the longest document has so many; the square root tells short ones apart."""
    return SMALL if small else LOWEST + (HIGHEST - LOWEST) * (len(document.tokens or ()) / most) ** 0.5


def draw_card(document: GeneratedDocument, height: float, small: bool) -> str:
    """SVG elements of a card whose upper left corner is at the origin. A truncated document's lower edge is torn."""
    teeth = "".join(f" l-6 {'-4' if tooth % 2 else '4'}" for tooth in range(CARD // 6))
    edge = f"V{height - 4:.1f}{teeth}" if document.truncated else f"V{height:.1f}H0"
    drawn = (
        f"<title>{escape(facts(document))}</title>"
        f'<path class="box" d="M0 0H{CARD}{edge}z"/>'
        f'<rect class="source" width="5" height="{height - 4 * document.truncated:.1f}"/>'
    )
    if small:
        return f'{drawn}<text class="name" x="14" y="17">{escape(shorten(document.title, 26))}</text>'
    return (
        f'{drawn}<text class="name" x="14" y="{height / 2 - 3:.1f}">{escape(shorten(document.title, 23))}</text>'
        f'<text class="facts" x="14" y="{height / 2 + 13:.1f}">{escape(shorten(_size(document), 30))}</text>'
    )


def source_class(document: GeneratedDocument) -> str:
    """The class by which a card has its colour."""
    return next((source for source in SOURCES if document.source == source), OTHER)


def source_name(document: GeneratedDocument) -> str:
    """Where a document comes from; of a file, its name."""
    return document.source.name if isinstance(document.source, Path) else document.source


def facts(document: GeneratedDocument) -> str:
    """A document's title and what is known of it, in a line."""
    return f"{document.title} ({about(document)})"


def about(document: GeneratedDocument) -> str:
    told = [_size(document)]
    if document.finish_reason is not None:
        told.append(f"ended by {document.finish_reason}")
    if document.truncated:
        told.append("truncated")
    return " · ".join(told)


def _size(document: GeneratedDocument) -> str:
    count = "text only" if document.tokens is None else f"{len(document.tokens):,} tokens"
    return f"{count} · {source_name(document)}"
