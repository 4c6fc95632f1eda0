"""How a title finds its document: the one look-up rule, for the corpus on disk and for the corpus being written."""

from __future__ import annotations

import re
from typing import Protocol

from ds2ds.documents.title_utils import create_filename, title_key

_SPACES = re.compile(r"[\s_]+")


class Names(Protocol):
    """Where the rule looks. Each method returns a node's number (0-based), or None."""

    def by_title(self, title: str) -> int | None: ...

    def by_identifier(self, identifier: str) -> int | None: ...

    def by_key(self, key: str) -> int | None:
        """The node of the only title with this ``title_key``; None where two different titles share it."""
        ...


def is_title(text: str) -> bool:
    """Whether a document can be called `text`: it is one line without spaces around it, and not empty."""
    return bool(text) and text == text.strip() and "\n" not in text


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _exact_names(title: str) -> dict[str, None]:
    return dict.fromkeys([title, _SPACES.sub(" ", title).strip(), create_filename(title)])


def title_variants(title: str) -> list[str]:
    """The names under which a document called `title` is looked for, in order, without repeats.

    1. the title as it is: a raw title, or a document's identifier;
    2. the same with each run of spaces and underscores as one space ("linked_list" finds "linked list");
    3. the identifier of such a title, ``create_filename(title)``;
    4. its ``title_key``, which is compared with the keys of all titles and counts only if it is one title's.

    Punctuation is never folded ("C", "C++" and "C#" are three documents), so an identifier is never cut back to
    its normalised part: the hash at its end is all that tells those three apart.
    """
    return list(dict.fromkeys([*_exact_names(title), title_key(title)]))


def find_node(names: Names, title: str) -> int | None:
    """The node that `title` means, or None: ``title_variants`` says what is tried, in which order."""
    if not is_unicode(title):
        return None
    for name in _exact_names(title):
        for look_up in (names.by_title, names.by_identifier):
            node = look_up(name)
            if node is not None:
                return node
    return names.by_key(title_key(title))


def find_target(names: Names, target: str, candidates: tuple[str, ...] = ()) -> int | None:
    """The node that a link means: of its candidates, which are titles spelt just so, the first that there is; without
    candidates, what ``find_node`` says of its target."""
    if not candidates:
        return find_node(names, target)
    found = (names.by_title(candidate) for candidate in candidates if is_unicode(candidate))
    return next((node for node in found if node is not None), None)
