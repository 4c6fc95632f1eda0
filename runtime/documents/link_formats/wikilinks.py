"""MediaWiki's links, `[[Target]]` and `[[Target|text]]`, found in a stream of bytes that is read once.

The target is the title before a `#` (a section of it), entities and percent-encoding resolved, each run of spaces and
underscores as one space, without a leading colon. A link to a section of the document itself (`[[#Section]]`) is
none. The text may span lines and hold any markup; of links within links the innermost counts, so those in an image's
caption do. Images, other media and categories (`[[File:...]]`, `[[Category:...]]`) are no links, `[[:File:...]]` is
one. Comments are as if they were not there; what stands between `<nowiki>`, `<pre>` and the like is no markup.

What only the wiki itself could tell, or later text, is not known:

1. Templates are not expanded. A link in a template's argument counts where it stands; a target that a template would
   complete (`[[{{PAGENAME}}/x]]`) is no link.
2. Namespaces are known by their canonical English names (`namespaces_without_links`), prefixes of other wikis not at
   all: `[[fr:Chat]]` leads to a document "fr:Chat".
3. A comment, or a tag whose content is no markup, that is never closed hides all that follows it.
4. `]]` completes a link; letters after it (`[[cat]]s`) or a third bracket change nothing. Of three opening brackets the
   last two count.
5. A link with 4 KiB or more between its brackets is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from ds2ds.documents.link_destination import resolve_entities
from ds2ds.documents.link_formats.state_scanner import StateScanner
from ds2ds.documents.link_scanner import ScannedLink, is_external

_LONGEST_LINK = 4096
_LONGEST_TAG = 256

_COMMENT = b"<!--"
_VERBATIM_TAGS = (b"nowiki", b"pre", b"syntaxhighlight", b"source", b"math", b"chem", b"score", b"timeline",
                  b"templatedata")  # fmt: skip
_OPENINGS = tuple(b"<" + name for name in _VERBATIM_TAGS)

_IN_TEXT = re.compile(rb"[\[<]")
_IN_LINK = re.compile(rb"[\[\]<|]")
_SPACES = re.compile(r"[\s_]+")
_NO_TITLE = re.compile(r"[\[\]{}<>\n]")

WITHOUT_LINKS = frozenset({"file", "image", "media", "category"})


def _target(source: str, without_links: frozenset[str]) -> str | None:
    """The title that stands before the `|`; None if that is no link to a document."""
    if _NO_TITLE.search(source):
        return None
    source = source.strip()
    if is_external(source):
        return None if source.startswith("#") else source
    title = _SPACES.sub(" ", unquote(resolve_entities(source)).partition("#")[0]).strip()
    namespace, colon, _ = title.partition(":")
    if colon and namespace.strip().casefold() in without_links:
        return None
    return title.removeprefix(":").strip() or None


class _WikilinkScanner(StateScanner):
    def __init__(self, without_links: frozenset[str]) -> None:
        self._without_links = without_links
        super().__init__()

    def reset(self) -> None:
        """The document ends: what is open is none."""
        self._read = self._read_text
        self._before = 0  # the visible byte before this one, if it was a bracket or a bar
        self._before_at = 0
        self._tag = bytearray()  # from a `<` on, as long as it may hide what follows
        self._closing = b""  # what ends the part that is hidden
        self._tail = b""  # the last bytes of it, in which that may have begun
        self._close_link()

    def _close_link(self) -> None:
        self._start: int | None = None  # of the link that is open
        self._body = bytearray()  # what came after its `[[`
        self._bar: int | None = None  # where its `|` is

    # The states.

    def _read_text(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        special = (_IN_TEXT if self._start is None else _IN_LINK).search(data, at)
        end = len(data) if special is None else special.start()
        if end > at:
            self._before = 0
            if self._start is not None:
                self._body += data[at:end]
        if end < len(data):
            self._read_special(data[end], offset + end, links)
            end += 1
        if len(self._body) > _LONGEST_LINK:
            self._close_link()
        return end

    def _read_special(self, byte: int, at: int, links: list[ScannedLink]) -> None:
        if byte == 0x3C:  # "<"
            self._tag[:] = b"<"
            self._read = self._read_tag
            return
        before, self._before = self._before, byte
        if byte == before == 0x5B:
            self._close_link()
            self._start = self._before_at
        elif self._start is not None:
            if byte == before == 0x5D:
                self._complete(at + 1, links)
                return
            if byte == 0x7C and self._bar is None:
                self._bar = at
            self._body.append(byte)
        self._before_at = at

    def _complete(self, end: int, links: list[ScannedLink]) -> None:
        start, body = self._start, self._body[:-1].decode(errors="replace")
        middle = self._before_at if self._bar is None else self._bar
        self._close_link()
        source, _, text = body.partition("|")
        target = _target(source, self._without_links)
        if target is not None and start is not None:
            shown = text.strip() or source.strip().removeprefix(":")
            links.append(ScannedLink(resolve_entities(shown), target, start, end, middle))

    def _read_tag(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        """After a `<`: a comment, a tag that hides what follows, or nothing of the kind."""
        self._tag.append(data[at])
        tag = bytes(self._tag).lower()
        if tag == _COMMENT:
            self._hide(b"-->")
            return at + 1
        known = next((opening for opening in _OPENINGS if tag.startswith(opening)), None)
        if _COMMENT.startswith(tag) or any(opening.startswith(tag) for opening in _OPENINGS):
            return at + 1
        if known is not None and len(tag) <= _LONGEST_TAG and tag[len(known)] in b" \t\n/>":
            if tag[-1] != 0x3E:
                return at + 1
            self._before = 0
            if self._bar is None:
                self._close_link()  # no title has a tag in it
            if tag[-2] == 0x2F:  # <nowiki/>: empty
                self._read = self._read_text
            else:
                self._hide(b"</" + known[1:] + b">")
            return at + 1
        self._before = 0
        if self._start is not None:
            self._body += self._tag[:-1]
        self._read = self._read_text  # the last byte is read there
        return at

    def _hide(self, closing: bytes) -> None:
        self._closing, self._tail, self._read = closing, b"", self._read_hidden

    def _read_hidden(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        seen = self._tail + data[at:].lower()
        end = seen.find(self._closing)
        if end < 0:
            self._tail = seen[-len(self._closing) + 1 :]
            return len(data)
        self._read = self._read_text
        return at + end + len(self._closing) - len(self._tail)


@dataclass(frozen=True)
class Wikilinks:
    """MediaWiki's links. A link's `start` is that of its `[[`, its `middle` the `|`, or the `]]` if there is none.

    Attributes:
        namespaces_without_links: namespaces, in lower case, whose links put something in place or file the document.
    """

    name: str = "wikilinks"
    namespaces_without_links: frozenset[str] = field(default=WITHOUT_LINKS)

    def scanner(self, document_title: str = "") -> _WikilinkScanner:
        return _WikilinkScanner(self.namespaces_without_links)
