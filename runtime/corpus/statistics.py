"""How many of a corpus' links lead to one of its documents."""

from __future__ import annotations

from dataclasses import dataclass

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.link_scanner import LinkScanner, is_external
from ds2ds.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LinkCount:
    """Links in the texts of so many documents, and how many of them resolve. Addresses are no links here."""

    documents: int
    found: int
    resolving: int


def link_targets(body: str) -> tuple[str, ...]:
    """The targets of the links in `body`, in order; addresses and empty targets left out."""
    links = LinkScanner().feed(body.encode())
    return tuple(link.target for link in links if link.target and not is_external(link.target))


def sample_links(corpus: DocumentCorpus, tokenizer: Tokenizer, documents: int) -> LinkCount:
    """Count the links in `documents` evenly spaced documents; in all of them if it is 0 or there are no more."""
    total = len(corpus)
    count = min(documents, total) if documents else total
    found = resolving = 0
    known: dict[str, bool] = {}
    for i in range(count):
        node = corpus.graph.node(i * total // count)
        tokens = corpus.read(node)
        for target in link_targets(tokenizer.decode(tokens.tolist())):
            if target not in known:
                known[target] = corpus.has_document(target)
            found += 1
            resolving += known[target]
    return LinkCount(count, found, resolving)
