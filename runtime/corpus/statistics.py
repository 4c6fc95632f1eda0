"""How many of a corpus' links lead to one of its documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.corpus.names import find_target
from ds2ds.documents.link_formats import DEFAULT_FORMAT, LinkFormat, link_format
from ds2ds.documents.link_scanner import is_external
from ds2ds.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LinkCount:
    """Links in the texts of so many documents, and how many of them resolve. Addresses are no links here."""

    documents: int
    found: int
    resolving: int


class LinkTarget(NamedTuple):
    """What a link leads to, see ``ScannedLink``."""

    title: str
    candidates: tuple[str, ...]


def links_in(body: str, title: str, format: LinkFormat) -> tuple[LinkTarget, ...]:
    """What the links in the document `title` lead to, in order; addresses and empty targets left out."""
    links = format.scanner(title).feed(body.encode())
    return tuple(
        LinkTarget(link.target, link.candidates) for link in links if link.target and not is_external(link.target)
    )


def link_targets(body: str) -> tuple[str, ...]:
    """The targets of the markdown links in `body`, in order; addresses and empty targets left out."""
    return tuple(link.title for link in links_in(body, "", link_format(DEFAULT_FORMAT)))


def sample_links(corpus: DocumentCorpus, tokenizer: Tokenizer, documents: int) -> LinkCount:
    """Count the links in `documents` evenly spaced documents; in all of them if it is 0 or there are no more.

    They are read as links of the format that the corpus' metadata names; if it names none, of markdown.

    Raises:
        ConfigError: that format is not here.
    """
    total = len(corpus)
    count = min(documents, total) if documents else total
    format = link_format(corpus.metadata.link_format or DEFAULT_FORMAT)
    found = resolving = 0
    known: dict[LinkTarget, bool] = {}
    for i in range(count):
        node = corpus.graph.node(i * total // count)
        tokens = corpus.read(node)
        for link in links_in(tokenizer.decode(tokens.tolist()), node.title, format):
            if link not in known:
                known[link] = find_target(corpus.graph, *link) is not None
            found += 1
            resolving += known[link]
    return LinkCount(count, found, resolving)
