"""The models, corpora and prompts of bench/reuse.py and bench/link_event.py."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from decode import HEAD_DIM, VOCAB_SIZE, parse_size

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.model.checkpoint import build_model, load_checkpoint
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.runtime import Runtime

DEMO = "demo"
MAX_SEQ_LEN = 40_000
ARENA_TOKENS = 52_000
HUB = "all of them"


def make_runtime(model: str, device: torch.device, dtype: torch.dtype) -> Runtime:
    """ "demo", or LAYERSxWIDTH: random weights. Both with MAX_SEQ_LEN positions.

    The packaged model was made for 2,048. Its time per token does not depend on that; what it writes is not looked at.
    """
    if model == DEMO:
        packaged = load_checkpoint(DEMO)
        made = build_model(replace(packaged.config, max_seq_len=MAX_SEQ_LEN), packaged.state_dict(), DEMO)
    else:
        layers, width = parse_size(model)
        torch.manual_seed(0)
        made = DS2DSModel.from_config(
            vocab_size=VOCAB_SIZE,
            num_layers=layers,
            model_dim=width,
            num_heads=width // HEAD_DIM,
            max_seq_len=MAX_SEQ_LEN,
        )
    made = made.to(device=device, dtype=dtype)
    runtime = Runtime(made, layout_policy=made.config.layout_policy, arena_tokens=ARENA_TOKENS)
    # The first write to a page of memory takes longer than all others.
    runtime.engine.store.arena.data.zero_()
    return runtime


class Shelf:
    """A corpus in memory, in front of another one."""

    def __init__(self, documents: Mapping[str, Sequence[int]], behind: DocumentCorpus | None = None) -> None:
        self.documents = dict(documents)
        self.behind = behind

    def resolve(self, title: str) -> str | None:
        if title in self.documents:
            return title
        return self.behind.resolve(title) if self.behind is not None else None

    def has_document(self, title: str) -> bool:
        return self.resolve(title) is not None

    def get_document(self, title: str) -> Any:
        if title in self.documents:
            return self.documents[title]
        return self.behind.get_document(title) if self.behind is not None else None


@dataclass(frozen=True)
class Library:
    """Attributes:
    titles: of documents that can be linked.
    lengths: of their bodies, in tokens.
    """

    corpus: Shelf
    titles: list[str]
    lengths: list[int]

    def with_hub(self, hub: Sequence[int]) -> Shelf:
        """The corpus, and in it the document HUB."""
        return Shelf({**self.corpus.documents, HUB: hub}, self.corpus.behind)


def foldoc(count: int, longest: int = 512) -> Library:
    """Documents of FOLDOC, picked at random among those whose titles need no escapes in a link."""
    corpus = DocumentCorpus(DEMO)
    nodes = [node for node in corpus.graph.nodes() if node.length <= longest and re.fullmatch(r"[\w -]+", node.title)]
    picked = random.Random(0).sample(nodes, count)
    return Library(Shelf({}, corpus), [node.title for node in picked], [node.length for node in picked])


def synthetic(count: int, length: int) -> Library:
    """Documents of so many random tokens each."""
    tokens = torch.randint(VOCAB_SIZE - 1, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    titles = [f"document {number}" for number in range(count)]
    return Library(Shelf(dict(zip(titles, tokens, strict=True))), titles, [length] * count)


def links(titles: Sequence[str]) -> str:
    return ", ".join(f"[x]({title})" for title in titles)
