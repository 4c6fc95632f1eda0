"""write_corpus: documents with links become a corpus on disk, complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds2ds.corpus.build.output_folder import new_folder
from ds2ds.corpus.build.shard_writer import ShardWriter
from ds2ds.corpus.build.tokenizing import SourceDocument, tokenized
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.corpus.format import GRAPH_NAME, Metadata, write_metadata
from ds2ds.corpus.index import INDEX_NAME, build_index
from ds2ds.corpus.names import find_target, is_title
from ds2ds.corpus.resolving.redirects import REDIRECTS_NAME
from ds2ds.corpus.search import SEARCH_NAME, build_search_index
from ds2ds.corpus.statistics import LinkTarget
from ds2ds.documents.link_formats import DEFAULT_FORMAT, link_format
from ds2ds.documents.title_utils import create_filename, title_key
from ds2ds.errors import CorpusError
from ds2ds.tokenizer import as_tokenizer

__all__ = ["MAX_TOKENS_PER_SHARD", "CorpusSummary", "SourceDocument", "write_corpus"]

MAX_TOKENS_PER_SHARD = 100_000_000


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """What was written. `links` counts distinct (document, target) pairs, `unresolved` those without a document."""

    documents: int
    tokens: int
    links: int
    unresolved: int
    shards: int


@dataclass(slots=True)
class _Nodes:
    """The documents written so far, by every name that a link may use (see ``names.Names``)."""

    titles: list[str] = field(default_factory=list)
    identifiers: list[str] = field(default_factory=list)
    numbers_by_title: dict[str, int] = field(default_factory=dict)
    numbers_by_identifier: dict[str, int] = field(default_factory=dict)
    numbers_by_key: dict[str, int | None] = field(default_factory=dict)

    def add(self, title: str) -> None:
        if not is_title(title):
            raise CorpusError(f"a title must be one line without spaces around it, got {title!r}")
        if title in self.numbers_by_title:
            raise CorpusError(f"two documents are called {title!r}: titles must differ")
        number = len(self.titles)
        # 24 bits of hash are few for titles that normalise to nothing ("日本"): the later one takes a number.
        identifier, copy = create_filename(title), 2
        while identifier in self.numbers_by_identifier:
            identifier, copy = f"{create_filename(title)}_{copy}", copy + 1
        key = title_key(title)
        self.titles.append(title)
        self.identifiers.append(identifier)
        self.numbers_by_title[title] = number
        self.numbers_by_identifier[identifier] = number
        self.numbers_by_key[key] = None if key in self.numbers_by_key else number

    def by_title(self, title: str) -> int | None:
        return self.numbers_by_title.get(title)

    def by_identifier(self, identifier: str) -> int | None:
        return self.numbers_by_identifier.get(identifier)

    def by_key(self, key: str) -> int | None:
        return self.numbers_by_key.get(key)


def _edges(nodes: _Nodes, targets_of: list[tuple[LinkTarget, ...]]) -> tuple[list[list[int]], int]:
    """For each document the documents that it links to, each once, in order, itself left out; and the number of
    (document, target) pairs without a document."""
    found: dict[LinkTarget, int | None] = {}
    outgoing, unresolved = [], 0
    for number, link_targets in enumerate(targets_of):
        targets: dict[int, None] = {}
        for target in dict.fromkeys(link_targets):
            if target not in found:
                found[target] = find_target(nodes, *target)
            node = found[target]
            if node is None:
                unresolved += 1
            elif node != number:
                targets[node] = None
        outgoing.append(list(targets))
    return outgoing, unresolved


def _write_graph(path: Path, nodes: _Nodes, outgoing: list[list[int]], places: list[tuple[int, int, int]]) -> None:
    incoming: list[list[int]] = [[] for _ in outgoing]
    for number, targets in enumerate(outgoing):
        for target in targets:
            incoming[target].append(number)
    names = nodes.identifiers
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, title in enumerate(nodes.titles):
            shard, offset, length = places[number]
            node: dict[str, Any] = {
                "normed_identifier": names[number],
                "raw_identifier": title,
                "outgoing": [names[target] for target in outgoing[number]],
                "incoming": [names[source] for source in incoming[number]],
                "tok_shard_idx": shard,
                "tok_offset_bytes": offset,
                "tok_len": length,
            }
            file.write(json.dumps(node, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_corpus(
    out_dir: str | Path,
    documents: Iterable[Any],
    tokenizer_name: str = "gpt2",
    *,
    tokenizer: Any = None,
    load: Callable[[Any], SourceDocument] | None = None,
    max_tokens_per_shard: int = MAX_TOKENS_PER_SHARD,
    workers: int = 1,
    force: bool = False,
    search: bool = True,
    redirects: Mapping[str, str] | None = None,
    links: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> CorpusSummary:
    """Write a corpus (DESIGN 5) with its indexes. The same documents give the same bytes, with any number of workers.

    A document's tokens are those of its body alone: title heading and EOS are the layout's, at run time. Its edges are
    the links in its body whose targets are documents of this corpus, found by the look-up rule of
    ``names.title_variants`` (a link with candidates: by ``names.find_target``); a link to itself is none.

    Args:
        out_dir: a folder to make; appears complete or not at all.
        documents: SourceDocuments; or, with `load`, anything that `load` turns into one.
        tokenizer_name: recorded in metadata.json; "gpt2" is the packaged tokenizer.
        tokenizer: what ``as_tokenizer`` takes; needed for any other name. Only with workers=1.
        load: called in the workers, so that reading and converting run in parallel too; must be picklable then.
        max_tokens_per_shard: a shard ends before the document that would cross this; a longer one has its own.
        workers: processes that load, tokenize and find links. More than 1 needs an importable main module.
        force: replace a corpus that is already there.
        search: write the full-text index too.
        redirects: other names of documents, name to title; written to redirects.json, if there are any.
        links: the name of the bodies' link format (`ds2ds.documents.link_formats`), recorded in metadata.json; None:
            markdown, not recorded.
        progress: called with the number of documents done so far.

    Raises:
        CorpusError: `out_dir` exists (and is no corpus, or force is False); no documents; a title is empty, spans
            lines, has spaces around it or occurs twice; a body is empty.
        ConfigError: an unknown tokenizer or link format, or a custom tokenizer with several workers.
    """
    out = Path(out_dir)
    format_name = links or DEFAULT_FORMAT
    link_format(format_name)  # an unknown one is told before anything is read
    with new_folder(out, force=force) as folder:
        tokens = as_tokenizer(tokenizer)
        dtype_str = "uint16" if tokens.vocab_size is not None and tokens.vocab_size <= 1 << 16 else "uint32"
        nodes = _Nodes()
        targets: list[tuple[LinkTarget, ...]] = []
        places: list[tuple[int, int, int]] = []
        with ShardWriter(folder, dtype_str, max_tokens_per_shard) as shards:
            for document in tokenized(documents, tokenizer_name, tokenizer, load, workers, format_name):
                nodes.add(document.title)
                places.append(shards.append(document.tokens))
                targets.append(document.targets)
                if progress is not None:
                    progress(len(targets))
        if not targets:
            raise CorpusError(f"cannot write {out}: there are no documents")
        outgoing, unresolved = _edges(nodes, targets)
        _write_graph(folder / GRAPH_NAME, nodes, outgoing, places)
        write_metadata(folder, Metadata(tokenizer_name, dtype_str, tuple(shards.filenames), links))
        if redirects:
            text = json.dumps(dict(redirects), ensure_ascii=False, indent=1)
            (folder / REDIRECTS_NAME).write_text(text + "\n", encoding="utf-8", newline="\n")
        build_index(folder / GRAPH_NAME, folder / INDEX_NAME)
        if search:
            with DocumentCorpus(folder) as corpus:
                build_search_index(corpus, folder / SEARCH_NAME, tokens)
    return CorpusSummary(
        documents=len(targets),
        tokens=sum(length for _, _, length in places),
        links=sum(map(len, outgoing)) + unresolved,
        unresolved=unresolved,
        shards=len(shards.filenames),
    )
