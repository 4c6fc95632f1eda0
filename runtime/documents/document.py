"""A document while it is read or written: its tokens, and which other documents it may read from where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ds2ds.documents.content import Content
    from ds2ds.documents.title_match import Match


def plain_ids(tokens: Iterable[int]) -> list[int]:
    """A list of its own, of Python's integers, whatever holds these token ids: an array, a tensor, a list."""
    ids = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    return ids if set(map(type, ids)) <= {int} else list(map(int, ids))


@dataclass(frozen=True)
class DocumentGrant:
    """From token `position` on, up to `end` (None: to the last), a document reads all of `target` (S1, S2).

    `link` is the link's target as it was written, `match` how the corpus knew it (None: it did not). They are kept for
    the result: what is computed does not depend on them.
    """

    position: int
    target: Document
    end: int | None = None
    link: str = ""
    match: Match | None = None

    def covers(self, token: int) -> bool:
        """Whether the token at this index reads the target."""
        return self.position <= token and (self.end is None or token < self.end)

    def is_read(self, length: int) -> bool:
        """Whether any of the first `length` tokens reads the target."""
        return self.position < (length if self.end is None else min(self.end, length))


@dataclass(eq=False, repr=False)
class Document:
    """One node of the graph. Documents are compared by identity: a title may be written twice in a process.

    Attributes:
        tokens: layout prefix, body and, once complete, layout suffix.
        logprobs: natural-log probability of each token under the model, NaN where none was predicted.
        grants: in order of position.
        given: how many tokens it was started with; the others were written.
        settled: how many of the tokens were computed at some time, so that what they read can no longer change (S4).
        capacity: how many tokens the document may come to hold; None: it is complete.
        alternatives: by position, the likeliest tokens there and their log-probabilities, where they were asked for.
        fresh_from: tokens from this one on are computed even where their keys and values could be copied; None: all
            may be copied.
        text_end: how many characters of its text count; None: all. A stop string cuts it.
        content: see `content_of`; None until it is asked for.
        origin: a document whose first tokens, as many as are settled in this one, have the same keys and values; None
            where there is none, or once this one has its own place in the arena.
    """

    title: str
    tokens: list[int]
    source: str = "generated"
    depth: int = 0
    parent: Document | None = None
    logprobs: list[float] = field(default_factory=list)
    grants: list[DocumentGrant] = field(default_factory=list)
    given: int = field(init=False)
    settled: int = 0
    capacity: int | None = None
    finish_reason: str | None = None
    truncated: bool = False
    alternatives: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    fresh_from: int | None = None
    text_end: int | None = None
    content: Content | None = None
    origin: Document | None = None

    def __post_init__(self) -> None:
        self.logprobs = [float("nan")] * len(self.tokens)
        self.given = len(self.tokens)

    def __repr__(self) -> str:
        # Not what it reads: that would be told once for every path through the graph.
        grants = [(grant.position, grant.target.title, grant.end) for grant in self.grants]
        return f"Document({self.title!r}, {len(self.tokens)} tokens, depth={self.depth}, grants={grants})"

    @property
    def in_progress(self) -> bool:
        return self.capacity is not None

    def append(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)

    def has_open_grant(self, target: Document) -> bool:
        return any(grant.target is target and grant.end is None for grant in self.grants)

    def add_grant(self, position: int, target: Document, link: str = "", match: Match | None = None) -> None:
        """Let tokens from `position` on read `target`. No effect where an open grant of it is there already."""
        if not self.has_open_grant(target):
            self.grants.append(DocumentGrant(position, target, None, link, match))
            self.grants.sort(key=lambda grant: grant.position)

    def end_grants(self, target: Document) -> None:
        """Take `target` out of the view of all tokens that were not computed yet (S4)."""
        kept = []
        for grant in self.grants:
            if grant.target is target and grant.end is None:
                if grant.position >= self.settled:
                    continue  # no token has read it and none will
                grant = replace(grant, end=self.settled)
            kept.append(grant)
        self.grants = kept
