"""The link scanner against markdown-it-py's CommonMark parser, over thousands of generated paragraphs.

A text is left out only where one of the deviations listed in `ds2ds.documents.link_scanner` could act on it;
each has a predicate here, and examples of its own in test_link_scanner.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
from markdown_it import MarkdownIt
from markdown_it.helpers import parseLinkDestination, parseLinkTitle
from markdown_it.token import Token

from ds2ds.documents.link_scanner import LinkScanner

# Loose characters, and fragments that make links, images, titles and code spans common.
CHARACTERS = [
    "[", "[", "]", "(", ")", "\\", "!", '"', "'", " ", " ", "\n", "a", "a", "b.", "é", "日", "🦉", "&amp;",
    "&x;", "%20",
]  # fmt: skip
FRAGMENTS = [
    "](", "](b)", "](b)", "![", "![c", "[a", "a](b)", "[a](b)", "[é b](c)", "![a](b)", "[a](b(c)d)",
    "[a](b\\)c)", "[a]()", "[](b)", "[a](<b c>)", "[a](<b)c>)", "[a](<b> (t))", '[a](<b>"t")', "[a](<b>c)",
    "[a](<b\nc>)", "[a](<b<c>)", "[a](<b> <)", '[a](\n"b")', '[a](<b> "t" )', "[a](<b> (t(u))",
    "[a](<b> 't(\\' u')", '[a](b "t")', "[a](b 't (u')", '[a]( b\n"t\\"(" )', '[a](b"t(")', '[a]("b(")',
    "[a](b(c)\n't(')", "[a](日本)", "[a](&amp;&ampx;&#65;)", "[a [b](c) d](e)", "[![a](b)](c)",
    "![a [b](c)](d)", "[a [b] c](d)", "[a\\]](b)", "[a](b](c)", "[a](b[c)", "![a](b[c)", "![a](b`c)",
    "[a](b`c)", "[a](b![c](d)e)", "![a](b![c](d)e)", "![a](b]c)", "![a [b](c) d",
    "![a [b [c](d) e] f](g[h)", "[x ![a](b](c)", "![x ![a](b](c)d)", "[a](b[c](d) e)", "`]`", "[`]`](a)",
    "``a`[b](c)``", "`[a](b)`", "`[a]\n(b)`", "\\`[a](b)", "\\[", "\\]", "\\(", "\\)", "\\!", "\\\\",
    "<a b>", "<", ">", "`", "[a](b c)", "[a](b (c))",
]  # fmt: skip
TEXTS = 8000

MARKDOWN = MarkdownIt("commonmark", {"maxNesting": 1000}).disable(["reference", "text_join"])
WITHOUT_TAGS = MarkdownIt("commonmark", {"maxNesting": 1000}).disable(
    ["reference", "text_join", "autolink", "html_inline"]
)
for markdown in (MARKDOWN, WITHOUT_TAGS):
    markdown.normalizeLink = lambda url: url  # type: ignore[method-assign]
    markdown.validateLink = lambda url: True  # type: ignore[method-assign]

Link = tuple[str | None, str]


def generate(random_: random.Random) -> str:
    parts = random_.choices(
        [CHARACTERS, FRAGMENTS],
        weights=[random_.choice([1, 3]), random_.choice([1, 2])],
        k=random_.randint(2, 12),
    )
    return "".join(random_.choice(part) for part in parts)


def scan(text: str, random_: random.Random) -> list[Link]:
    """The scanner's links, fed in pieces of 1 to 9 bytes that split characters."""
    data, scanner, links = text.encode(), LinkScanner(), []
    at = 0
    while at < len(data):
        size = random_.randint(1, 9)
        links += scanner.feed(data[at : at + size])
        at += size
    return [(" ".join(link.text.split()), link.target) for link in links]


def paragraph(markdown: MarkdownIt, text: str) -> list[Token] | None:
    """The inline tokens of a text that is one paragraph, else None."""
    tokens = markdown.parse(text)
    if [token.type for token in tokens] != ["paragraph_open", "inline", "paragraph_close"]:
        return None
    return tokens[1].children


def links_of(tokens: list[Token]) -> Iterator[Link]:
    """Links in order. Their text is None where it holds more than text. A link that holds a link is none:

    markdown-it-py lets a link hold an image that holds a link, the specification does not.
    """
    for index, token in enumerate(tokens):
        if token.type == "image":
            yield from links_of(token.children or [])
        elif token.type == "link_open":
            close = next(i for i in range(index, len(tokens)) if tokens[i].type == "link_close")
            inner = tokens[index + 1 : close]
            if any(True for image in inner if image.type == "image" and list(links_of(image.children or []))):
                continue
            plain = all(part.type in ("text", "text_special", "softbreak") for part in inner)
            words = "".join(part.content or "\n" * (part.type == "softbreak") for part in inner)
            yield " ".join(words.split()) if plain else None, str(token.attrs["href"])


def unmatched_backtick(tokens: Iterable[Token]) -> bool:
    return any(
        (token.type == "text" and "`" in token.content) or unmatched_backtick(token.children or []) for token in tokens
    )


def skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \n":
        at += 1
    return at


def is_link_end(text: str, end: int) -> bool:
    """Whether the `)` at `end` completes a link if nothing comes after it."""
    with_it, without_it = (paragraph(MARKDOWN, text[:stop]) for stop in (end + 1, end))
    return with_it is None or without_it is None or list(links_of(with_it)) != list(links_of(without_it))


def deviations_after(text: str, start: int) -> set[str]:
    """What could act on the destination that starts at `start`, just after `](`."""
    at = skip_space(text, start)
    angle = text[at : at + 1] == "<"
    destination = parseLinkDestination(text, at, len(text))
    end = destination.pos if destination.ok else at
    title_at = skip_space(text, end)
    title = None
    if title_at > end:
        title = parseLinkTitle(text, title_at, len(text))
    close = skip_space(text, title.pos) if title and title.ok else title_at
    if not destination.ok or text[close : close + 1] != ")":
        word_end = next((i for i in range(at, len(text)) if text[i] in " \n"), len(text))
        return {"1 whitespace"} if not angle and word_end < len(text) else set()
    if not angle and "\\\n" in text[at:end]:
        return {"1 whitespace"}  # markdown-it-py lets a backslash bring a line break into a raw destination
    found = set()
    for end in range(at, close):
        if text[end] == ")" and "](" in text[at:end] and is_link_end(text, end):
            found.add("3 link within")
    if not angle and title and title.ok:
        if text[title_at] == "(":
            found.add("2 parentheses")
        depth, escaped = 0, False
        for character in text[title_at : title.pos]:
            if not escaped:
                depth += (character == "(") - (character == ")")
                if depth < 0:
                    found.add("3 title open")
            escaped = character == "\\" and not escaped
    return found


def deviations(text: str, tokens: list[Token]) -> set[str]:
    found = {name for at in range(len(text)) if text.startswith("](", at) for name in deviations_after(text, at + 2)}
    if unmatched_backtick(tokens):
        found.add("4 open backticks")
    without_tags = paragraph(WITHOUT_TAGS, text)
    if without_tags is None or list(links_of(without_tags)) != list(links_of(tokens)):
        found.add("5 tags")
    return found


@pytest.mark.parametrize("seed", range(4))
def test_same_links_as_commonmark(seed: int) -> None:
    random_ = random.Random(seed)
    counts: Counter[str] = Counter()
    while counts["texts"] < TEXTS // 4:
        text = generate(random_).strip()
        tokens = paragraph(MARKDOWN, text)
        if tokens is None:
            continue
        counts["texts"] += 1
        acting = deviations(text, tokens)
        counts.update(acting)
        if acting:
            continue
        expected, found = list(links_of(tokens)), scan(text, random_)
        assert [target for _, target in found] == [target for _, target in expected], text
        for (words, _), (expected_words, _) in zip(found, expected, strict=True):
            assert expected_words in (None, words), text
        counts["compared"] += 1
        counts["with links"] += bool(expected)
        counts["links"] += len(expected)
    print(dict(counts))
    assert counts["compared"] > 0.6 * counts["texts"], counts
    assert counts["with links"] > 0.6 * counts["compared"], counts
