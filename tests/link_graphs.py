"""Random link graphs in miniature: a vocabulary in which texts are full of links, models and corpora.

Random weights write no links in GPT-2's vocabulary. Here half of the ids open, close or are links, some of
them merged with their surroundings as byte-pair encoding merges them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

from ds2ds.model.ds2ds_model import DS2DSModel

VOCABULARY = (
    b"",  # EOS: a mark, no text
    *(
        b"[",
        b" [",
        b"[x](",
        b"](",
        b")",
        b").",
        b")[",
        b"](A",
        b"B)",
        b"[x](B).",
        b" [t](C)",
        b"[t](A)[x](D)",
    ),
    *(b"A", b"B", b"C", b"D", b"x", b" t", b".", b" ", b"\n", b"#"),
)
EOS = 0
IDS = {text: token for token, text in enumerate(VOCABULARY)}
TITLES = ("A", "B", "C", "D")


class TinyTokenizer:
    """Longest match first. Any text made of the vocabulary's characters can be encoded."""

    name = "tiny"
    vocab_size = len(VOCABULARY)
    eos_token_id = EOS

    def encode(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            piece = max((piece for piece in VOCABULARY if piece and data.startswith(piece)), key=len)
            ids.append(IDS[piece])
            data = data[len(piece) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(VOCABULARY[token] for token in ids).decode()

    def token_bytes(self, token: int) -> bytes:
        return VOCABULARY[token]


@dataclass
class TinyCorpus:
    """Title to body, in memory; counts how often each body was fetched."""

    bodies: dict[str, list[int]]
    fetched: dict[str, int] = field(default_factory=dict)

    def has_document(self, title: str) -> bool:
        return title in self.bodies

    def get_document(self, title: str) -> list[int] | None:
        if title in self.bodies:
            self.fetched[title] = self.fetched.get(title, 0) + 1
        return self.bodies.get(title)


# What may follow what in a link: ids of these left sides favour these right sides.
GRAMMAR = {
    (b"[", b" [", b")["): (b"x", b" t"),
    (b"x", b" t"): (b"](", b"](A", b".", b" [", b"[x]("),
    (b"[x](", b"]("): (b"A", b"B", b"B)", b"C", b"D"),
    (b"A", b"B", b"C", b"D", b"](A"): (b")", b").", b")["),
}


@functools.cache
def tiny_model(seed: int, num_layers: int = 2, num_heads: int = 4, max_seq_len: int = 4096) -> DS2DSModel:
    """Random weights (float32), scaled so that argmax is decisive, with an lm head of its own that leans
    towards finishing links. (Tied to the embedding, random weights repeat one token for ever.)"""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = DS2DSModel.from_config(
            vocab_size=len(VOCABULARY),
            num_layers=num_layers,
            model_dim=32,
            num_heads=num_heads,
            max_seq_len=max_seq_len,
            weight_tying=False,
        )
        embedding, head = model.embedding.weight.mul_(3), model.loss_fn.weight
        model.backbone.skip_weights.uniform_(0.5, 1.5)
        head.normal_(std=0.3)
        for left, right in GRAMMAR.items():
            for token in (IDS[text] for text in left):
                head[[IDS[text] for text in right]] += 2 * embedding[token] / embedding[token].norm()
    return model


def ids(*pieces: bytes) -> list[int]:
    return [IDS[piece] for piece in pieces]


def join(parts: Iterable[list[int]]) -> list[int]:
    return [token for part in parts for token in part]


def links() -> st.SearchStrategy[list[int]]:
    """A link, cut into tokens one way or another."""
    opened = st.sampled_from([ids(b"[x]("), ids(b" [", b"x", b"]("), ids(b"[", b" t", b"](")])
    title = st.sampled_from([*(ids(title.encode()) for title in TITLES), ids(b"D", b"D"), ids(b"A", b" t")])
    closed = st.sampled_from([ids(b")"), ids(b")."), ids(b")[")])
    merged = [ids(b"[", b"x", b"](A", b")"), ids(b"[x](", b"B)"), ids(b" [t](C)"), ids(b"[t](A)[x](D)")]
    return st.tuples(opened, title, closed).map(join) | st.sampled_from(merged)


def texts(min_pieces: int = 1, max_pieces: int = 8) -> st.SearchStrategy[list[int]]:
    """Token ids of a text, without EOS and never empty: links, words, and now and then any token at all."""
    word = st.sampled_from([ids(piece) for piece in (b"x", b" t", b".", b"\n", b" ")])
    chaos = st.integers(1, len(VOCABULARY) - 1).map(lambda token: [token])
    pieces = st.lists(links() | links() | word | chaos, min_size=min_pieces, max_size=max_pieces)
    return pieces.map(join)


def corpora() -> st.SearchStrategy[TinyCorpus]:
    """Some of the titles, with texts that link to each other, to themselves and to what is missing."""
    bodies = st.dictionaries(st.sampled_from(TITLES), texts(2, 6), min_size=2, max_size=len(TITLES))
    return bodies.map(TinyCorpus)


def link_sites(tokens: Sequence[int]) -> list[tuple[int, str]]:
    """(index of the token in which the `)` falls, target) of every link, read anew from the syntax.

    Enough for this vocabulary: no escapes, code spans, images, `<...>` destinations or quoted titles.
    """
    text = "".join(VOCABULARY[token].decode() for token in tokens)
    token_of = [index for index, token in enumerate(tokens) for _ in VOCABULARY[token]]
    sites: list[tuple[int, str]] = []
    brackets: list[int] = []
    candidates: list[list[int]] = []  # [its bracket, start of the destination, parentheses open in it]
    line_start = last_link = 0
    for at, character in enumerate(text):
        if character == "\n":
            if not text[line_start:at].strip():
                brackets, candidates = [], []
            line_start = at + 1
        elif character == "[":
            brackets.append(at)
        elif character == "]" and brackets:
            opened = brackets.pop()
            if text[at + 1 : at + 2] == "(" and opened >= last_link:
                candidates.append([opened, at + 2, 0])
        elif character == "(":
            for candidate in candidates:
                candidate[2] += candidate[1] <= at
        elif character == ")":
            complete = next((candidate for candidate in candidates if candidate[2] == 0), None)
            for candidate in candidates:
                candidate[2] -= 1
            if complete:
                target = re.sub(r"[ \t]*\n[ \t]*", " ", text[complete[1] : at].strip())
                sites.append((token_of[at], target))
                brackets = [bracket for bracket in brackets if bracket < complete[0]]
                candidates, last_link = [], at
    return sites
