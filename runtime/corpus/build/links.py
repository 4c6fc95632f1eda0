"""Links of all kinds to ``[text](Title)``."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from urllib.parse import unquote

from markdown_it import MarkdownIt

from ds2ds.corpus.build.note import Note
from ds2ds.corpus.build.vault import ENDINGS, Vault, without_ending
from ds2ds.documents.link_scanner import LinkScanner, is_external
from ds2ds.errors import CorpusError

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_ANGLE = re.compile(r"([<>\\&])")
_ESCAPED = r"\\\1"

# What hides a wikilink (an escape, a code span, an embed), or a wikilink.
_WIKILINK = re.compile(
    r"\\[^\n]"
    r"|(?P<ticks>`++)(?:(?!\n[ \t]*\n)[\s\S])+?(?<!`)(?P=ticks)(?!`)"
    r"|`+"
    r"|!\[\[[^\[\]\n]*\]\]"
    r"|\[\[(?P<target>[^\[\]\n|]+?)(?:\\?\|(?P<text>[^\[\]\n]*))?\]\]"
)


def _reads_back(markdown: str, target: str) -> bool:
    data = markdown.encode()
    links = LinkScanner().feed(data)
    return [(link.start, link.end, link.target) for link in links] == [(0, len(data), target)]


@functools.lru_cache(maxsize=65536)
def format_link(text: str, title: str) -> str:
    """``[text](title)``, escaped only where a LinkScanner would not read exactly this link.

    `text` is markdown; where it would break the link it becomes plain text, its punctuation escaped.

    Raises:
        CorpusError: no escape makes a link of it (an empty title, one with a line break).
    """
    angle, escaped = _ANGLE.sub(_ESCAPED, title), _PUNCTUATION.sub(_ESCAPED, title)
    for words in (text, _PUNCTUATION.sub(_ESCAPED, text)):
        for destination in (title, f"<{angle}>", escaped):
            markdown = f"[{words}]({destination})"
            if _reads_back(markdown, title):
                return markdown
    raise CorpusError(f"no link can be written with the text {text!r} and the title {title!r}")


def _split_code(body: str) -> Iterator[tuple[bool, str]]:
    """`body` in pieces: (whether it is a block of code, its text)."""
    blocks = MarkdownIt("commonmark").disable("inline").parse(body)
    spans = sorted(tuple(block.map) for block in blocks if block.type in ("fence", "code_block") and block.map)
    lines = body.split("\n")
    lines = [line + "\n" for line in lines[:-1]] + lines[-1:]
    done = 0
    for start, end in spans:
        yield False, "".join(lines[done:start])
        yield True, "".join(lines[start:end])
        done = end
    yield False, "".join(lines[done:])


def _split_heading(target: str) -> tuple[str, str]:
    name, _, heading = target.partition("#")
    return name.strip(), heading.strip()


def _new_title(name: str) -> str:
    """What a note that is not there would be called: as titles are, one line without spaces around it."""
    return " ".join(without_ending(name).split())


def _wikilink(target: str, text: str | None, note: Note, vault: Vault) -> str:
    """What becomes of ``[[target|text]]``. A place in this very note ("#heading") is no document: its text stays."""
    name, heading = target.strip(), ""
    found = vault.resolve(name, note)
    if found is None:  # else its "#" is part of a name: "C#"
        name, heading = _split_heading(name)
        found = vault.resolve(name, note) if name else None
    shown = _new_title(name)
    words = (text or "").strip() or " > ".join(filter(None, [shown, heading.removeprefix("^")]))
    if not name:
        return words
    return format_link(words, shown if found is None else found.title)


def _inline_link(source: str, text: str, target: str, note: Note, vault: Vault) -> str:
    """What becomes of the link `source`, ``[text](target)``: as it is, unless its target is a note or markdown."""
    if target.startswith("#"):
        return text or source
    if not target or is_external(target):
        return source
    path = unquote(target)
    name, _ = _split_heading(path)
    for candidate in (target, path, name):
        found = vault.resolve(candidate, note) if candidate else None
        if found is not None:
            return format_link(text, found.title)
    title = _new_title(name.rpartition("/")[2]) if name.lower().endswith(ENDINGS) else ""
    return format_link(text, title) if title else source


def _rewrite_wikilinks(piece: str, note: Note, vault: Vault) -> str:
    def replaced(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or not target.strip(" #") or vault.is_attachment(target):
            return match[0]
        return _wikilink(target, match["text"], note, vault) or match[0]

    return _WIKILINK.sub(replaced, piece)


def _rewrite_text(piece: str, note: Note, vault: Vault) -> str:
    data = piece.encode()
    out: list[str] = []
    done = 0
    for link in LinkScanner().feed(data):
        out.append(_rewrite_wikilinks(data[done : link.start].decode(), note, vault))
        source = data[link.start : link.end].decode()
        text = data[link.start + 1 : link.middle].decode()
        out.append(_inline_link(source, text, link.target, note, vault))
        done = link.end
    out.append(_rewrite_wikilinks(data[done:].decode(), note, vault))
    return "".join(out)


def rewrite_links(body: str, note: Note, vault: Vault) -> str:
    """`body` with every link to a note as ``[text](Title)``.

    Wikilinks (``[[note]]``, ``[[note|text]]``, ``[[note#heading|text]]``) and links to notes by relative path are
    rewritten; where there is no such note the link stays, to its name: the model may write that document.
    A link to a place in the note itself becomes its text, if it has one. Code, images, embeds (``![[...]]``),
    addresses, links to other files and reference links (``[text][label]``) are left alone.
    """
    return "".join(piece if is_code else _rewrite_text(piece, note, vault) for is_code, piece in _split_code(body))
