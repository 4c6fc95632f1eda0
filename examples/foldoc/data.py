"""FOLDOC as training data: documents with their links, and packs of targets before the document that links."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.layout import Layout
from ds2ds.documents.link_detector import LinkDetector
from ds2ds.documents.spans import DocSpan, SpanGrant
from ds2ds.tokenizer import as_tokenizer

LAYOUT_POLICY = "identifier_prefix_bos_eos"
HELD_OUT = 300


@dataclass(frozen=True)
class LinkedDocument:
    """Tokens int64 [n] as the model reads them, and per link (position of the first token that sees it, title)."""

    title: str
    tokens: np.ndarray
    links: tuple[tuple[int, str], ...]


def load_documents(corpus: DocumentCorpus) -> dict[str, LinkedDocument]:
    """Every document of a corpus, laid out and scanned for links. The first link to a target is the one that counts."""
    tokenizer = as_tokenizer()
    layout = Layout(LAYOUT_POLICY, tokenizer.encode, 50256)
    detector = LinkDetector(tokenizer)
    documents = {}
    for title in corpus.titles():
        body = corpus.get_document(title)
        if body is None:
            raise LookupError(f"the corpus lists {title!r} and does not have it")
        tokens = layout.wrap(title, body.tolist())
        stream = detector.stream()
        links: dict[str, int] = {}
        for index, token in enumerate(tokens):
            for link in stream.feed(token):
                target = corpus.resolve(link.target)
                if target is not None and target != title:
                    links.setdefault(target, index + 1)
        documents[title] = LinkedDocument(
            title,
            np.asarray(tokens, dtype=np.int64),
            tuple((position, target) for target, position in links.items()),
        )
    return documents


def split(documents: dict[str, LinkedDocument]) -> tuple[list[str], list[str]]:
    """Titles to train on and the 300 held out: those with the smallest digest, so that the split never moves."""
    by_digest = sorted(documents, key=lambda title: hashlib.sha256(title.encode()).digest())
    return by_digest[HELD_OUT:], by_digest[:HELD_OUT]


@dataclass(frozen=True)
class Pack:
    """[g_n]...[g_1][root]: the first grant's target ends where the root starts, and so on leftwards (S3)."""

    documents: tuple[LinkedDocument, ...]
    spans: tuple[DocSpan, ...]

    @property
    def length(self) -> int:
        return self.spans[-1].end


def make_pack(root: LinkedDocument, documents: dict[str, LinkedDocument], max_tokens: int) -> Pack:
    """A root, cut to max_tokens, behind as many of its targets as fit whole, first link first."""
    length = min(len(root.tokens), max_tokens)
    room = max_tokens - length
    granted: list[tuple[int, LinkedDocument]] = []
    for position, title in root.links:
        target = documents.get(title)
        if target is not None and position < length and len(target.tokens) <= room:
            granted.append((position, target))
            room -= len(target.tokens)
    spans: list[DocSpan] = []
    at = 0
    for _, target in reversed(granted):
        spans.append(DocSpan(target.title, at, at + len(target.tokens)))
        at += len(target.tokens)
    grants = tuple(SpanGrant(position, len(granted) - 1 - i) for i, (position, _) in enumerate(granted))
    spans.append(DocSpan(root.title, at, at + length, grants))
    return Pack((*(target for _, target in reversed(granted)), root), tuple(spans))


@dataclass(frozen=True)
class Batch:
    """Packs padded to one length: tokens int64 [B, T], mask bool [B, 1, T, T], and the rows to predict.

    `predict` are flat indices into B*T of the tokens whose successor counts, `targets` those successors, `is_root`
    whether they lie in the pack's root.
    """

    tokens: Tensor
    mask: Tensor
    predict: Tensor
    targets: Tensor
    is_root: Tensor


def collate(packs: Sequence[Pack], counted: Sequence[Sequence[bool]], linked: bool = True, multiple: int = 64) -> Batch:
    """Pack documents into one batch.

    Args:
        counted: per pack and document, whether its tokens are predicted.
        linked: whether the root sees its targets; without, every document stands alone.
    """
    length = -(-max(pack.length for pack in packs) // multiple) * multiple
    tokens = np.zeros((len(packs), length), dtype=np.int64)
    ids = np.full((len(packs), length), -1, dtype=np.int64)
    predict, targets, is_root = [], [], []
    for row, (pack, counts) in enumerate(zip(packs, counted, strict=True)):
        for index, (document, span, count) in enumerate(zip(pack.documents, pack.spans, counts, strict=True)):
            tokens[row, span.start : span.end] = document.tokens[: len(span)]
            ids[row, span.start : span.end] = index
            if count and len(span) > 1:
                predict.append(np.arange(span.start, span.end - 1) + row * length)
                targets.append(document.tokens[1 : len(span)])
                is_root.append(np.full(len(span) - 1, index == len(pack.spans) - 1))
    same = torch.from_numpy(ids)
    mask = (same[:, :, None] == same[:, None, :]).tril_()
    for row, pack in enumerate(packs if linked else ()):
        root = pack.spans[-1]
        for grant in root.grants:
            target = pack.spans[grant.target]
            mask[row, root.start + grant.position : root.end, target.start : target.end] = True
    return Batch(
        torch.from_numpy(tokens),
        mask.unsqueeze(1),
        torch.from_numpy(np.concatenate(predict)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.concatenate(is_root)),
    )


def epoch_batches(
    documents: dict[str, LinkedDocument],
    titles: Sequence[str],
    windows: Sequence[int],
    batch_tokens: int,
    seed: int,
) -> list[tuple[list[Pack], list[list[bool]]]]:
    """One epoch: every document once as a root behind its targets, and once, in passing, as a target on its own.

    Each root draws its pack's length from `windows`. Packs of like length share a batch of about batch_tokens tokens;
    the order is a function of the seed.
    """
    rng = np.random.default_rng(seed)
    known = {title: documents[title] for title in titles}
    as_target: set[str] = set()
    rows: list[tuple[Pack, list[bool]]] = []
    for index in rng.permutation(len(titles)):
        pack = make_pack(known[titles[index]], known, int(rng.choice(windows)))
        counts = [document.title not in as_target for document in pack.documents[:-1]]
        as_target.update(document.title for document in pack.documents[:-1])
        rows.append((pack, [*counts, True]))
    batches = []
    for group in _chunks(rows, 2048):
        group = sorted(group, key=lambda row: row[0].length)
        batch: list[tuple[Pack, list[bool]]] = []
        for row in group:
            if batch and (len(batch) + 1) * row[0].length > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
    order = rng.permutation(len(batches))
    return [([pack for pack, _ in batches[i]], [counts for _, counts in batches[i]]) for i in order]


def _chunks(rows: list[tuple[Pack, list[bool]]], size: int) -> Iterator[list[tuple[Pack, list[bool]]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
