"""Full-text search of a corpus: SQLite FTS5 without a copy of the texts, ranked by BM25."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.corpus.format import GRAPH_NAME
from ds2ds.corpus.index import Database, build_database, open_database
from ds2ds.errors import ConfigError
from ds2ds.tokenizer import Tokenizer, as_tokenizer

SEARCH_NAME = "search.sqlite"
_SCHEMA_VERSION = "1"
_FTS = "CREATE VIRTUAL TABLE texts USING fts5 (title, body, {options} tokenize = 'porter unicode61')"
_MOST = 2**63 - 1
_TITLE_WEIGHT = 8.0  # a word in the title counts as so many in the body


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One document found. `snippet` is its best passage on one line, the words sought between `mark_start` and
    `mark_end`; `score` is higher for a better match."""

    title: str
    snippet: str
    score: float


def corpus_tokenizer(corpus: DocumentCorpus, tokenizer: Any = None) -> Tokenizer:
    """The tokenizer that a corpus was made with: the packaged one for "gpt2", else what the caller passes.

    Raises:
        ConfigError: the corpus needs another one and none is passed.
    """
    name = corpus.metadata.tokenizer
    if tokenizer is None and name != "gpt2":
        raise ConfigError(f"the corpus at {corpus.path} is of tokenizer {name!r}, only 'gpt2' is packaged: pass it")
    return as_tokenizer(tokenizer)


def document_text(corpus: DocumentCorpus, title: str, tokenizer: Tokenizer) -> str | None:
    """The markdown of a document's body, or None where `title` means no document."""
    tokens = corpus.get_document(title)
    return None if tokens is None else tokenizer.decode(tokens.tolist())


def build_search_index(
    corpus: DocumentCorpus, out: Path, tokenizer: Tokenizer, progress: Callable[[int], None] | None = None
) -> None:
    """Index all titles and bodies of `corpus` as the SQLite file `out`, which appears complete or not at all."""

    def rows() -> Iterator[tuple[int, str, str]]:
        for node in corpus.graph.nodes():
            yield node.number, node.title, tokenizer.decode(corpus.read(node).tolist())
            if progress is not None:
                progress(node.number + 1)

    def fill(database: sqlite3.Connection) -> None:
        database.execute(_FTS.format(options="content = '',"))
        database.executemany("INSERT INTO texts (rowid, title, body) VALUES (?, ?, ?)", rows())
        database.execute("INSERT INTO texts (texts) VALUES ('optimize')")
        database.commit()
        database.execute("VACUUM")

    build_database(out, corpus.path / GRAPH_NAME, _SCHEMA_VERSION, fill)


def _match_expressions(words: str) -> list[str]:
    """What to ask FTS5, in turn: all of the words, then any of them. Quoted, so that no character is syntax."""
    # SQLite takes no half of a surrogate pair, and ends a string at a NUL.
    words = words.encode(errors="replace").decode().replace("\0", " ")
    terms = ['"' + word.replace('"', '""') + '"' for word in words.split() if any(map(str.isalnum, word))]
    return list(dict.fromkeys([" AND ".join(terms), " OR ".join(terms)])) if terms else []


class CorpusSearch:
    """Full-text search of `corpus`; its index is built on first use where the corpus has none.

    Args:
        tokenizer: what ``as_tokenizer`` takes, for a corpus whose tokenizer is not packaged.
        progress: called with the number of documents indexed so far, if an index has to be built.

    Raises:
        ConfigError: the corpus needs a tokenizer that is not packaged.
    """

    def __init__(
        self, corpus: DocumentCorpus, tokenizer: Any = None, progress: Callable[[int], None] | None = None
    ) -> None:
        self.corpus = corpus
        self.tokenizer = corpus_tokenizer(corpus, tokenizer)
        self._database: Database = open_database(
            corpus.path,
            SEARCH_NAME,
            _SCHEMA_VERSION,
            lambda out: build_search_index(corpus, out, self.tokenizer, progress),
        )

    def search(self, words: str, limit: int = 10, mark_start: str = "", mark_end: str = "") -> list[SearchHit]:
        """The documents that hold all of the words (if none does, any of them), best first.

        Words are matched by stem, whatever case they have; the document that `words` is the title of comes first.

        Raises:
            ConfigError: `limit` is no integer from 1 on that SQLite can hold.
        """
        if isinstance(limit, bool) or not isinstance(limit, Integral) or not 1 <= limit <= _MOST:
            raise ConfigError(f"limit must be an integer from 1 to {_MOST}, got {limit!r}")
        limit = int(limit)
        sql = (
            f"SELECT rowid, bm25(texts, {_TITLE_WEIGHT}, 1.0) AS score FROM texts WHERE texts MATCH ? "
            "ORDER BY score, rowid LIMIT ?"
        )
        for expression in _match_expressions(words):
            rows = self._database.query(sql, (expression, limit))
            if rows:
                break
        else:
            expression, rows = "", []
        scores = {number: -rank for number, rank in rows}
        named = self.corpus.graph.find(words)
        if named is not None:
            scores = {named.number: max(scores.values(), default=0.0)} | scores
        texts: dict[int, tuple[str, str]] = {}
        for number in list(scores)[:limit]:
            node = self.corpus.graph.node(number)
            body = self.tokenizer.decode(self.corpus.read(node).tolist())
            texts[number] = (node.title, " ".join(body.split()))
        snippets = _snippets(expression, texts, mark_start, mark_end)
        return [SearchHit(texts[number][0], snippets[number], scores[number]) for number in texts]

    def close(self) -> None:
        """Close the search index (not the corpus). Closing twice is fine."""
        self._database.close()


def _snippets(expression: str, texts: dict[int, tuple[str, str]], mark_start: str, mark_end: str) -> dict[int, str]:
    """The best passage of each text. The index holds no texts, so these few are indexed once more, in memory."""
    snippets = {number: body[:160] for number, (_, body) in texts.items()}
    if not expression:
        return snippets
    database = sqlite3.connect(":memory:")
    try:
        database.execute(_FTS.format(options=""))
        database.executemany(
            "INSERT INTO texts (rowid, title, body) VALUES (?, ?, ?)",
            [(number, title, body) for number, (title, body) in texts.items()],
        )
        sql = "SELECT rowid, snippet(texts, 1, ?, ?, '…', 24) FROM texts WHERE texts MATCH ?"
        return snippets | dict(database.execute(sql, (mark_start, mark_end, expression)))
    finally:
        database.close()
