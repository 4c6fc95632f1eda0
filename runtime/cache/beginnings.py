"""What a new document may start with a copy of: an earlier request's prompt, or the document that it is a fork of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ds2ds.cache.entry import Entry
from ds2ds.documents.content import Content, prefix_content
from ds2ds.documents.document import Document


class Beginning(NamedTuple):
    """The first `tokens` tokens of an entry."""

    entry: Entry
    tokens: int


def beginning(
    document: Document, entries: Mapping[Document, Entry], find: Callable[[Content], Entry | None]
) -> Beginning | None:
    """What a document without an entry may start with.

    A fork (`Document.origin`) starts with what it has in common with its origin. A root in progress that nothing was
    written of yet has the keys and values of a complete document of the same tokens and grants, such as the prompt of
    an earlier request.

    Args:
        entries: those of all resident documents.
        find: the entry of a content, if there is one.
    """
    if document.origin is not None:
        source = entries.get(document.origin)
        return None if source is None else Beginning(source, in_common(document, source))
    new = document.in_progress and len(document.tokens) == document.given
    if document.parent is not None or not new or document.fresh_from == 0:
        return None
    source = find(prefix_content(document, document.given))
    if source is None or not source.computed == document.given > 0:
        return None
    return Beginning(source, in_common(document, source))


def in_common(document: Document, source: Entry) -> int:
    """How many tokens a document may take over: neither the last one, since the next is drawn from it, nor those that
    it wants computed (`fresh_from`).

    Of an origin those that were computed when the fork began: what later ones read may differ.
    """
    most = len(document.tokens) - 1 if document.origin is None else document.settled
    return min(source.computed, most if document.fresh_from is None else min(most, document.fresh_from))
