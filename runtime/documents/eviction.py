"""Which document leaves the window when another needs its room: one small rule per policy.

This is about what the model still sees (S4). What the arena still holds is another matter: `ds2ds.cache.retention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ds2ds.documents.document import Document


@dataclass(frozen=True)
class Candidate:
    """A complete auxiliary document in the window.

    Attributes:
        arrived, linked: when it came into the window, and when a link last named it; larger is later.
    """

    document: Document
    arrived: int
    linked: int


@dataclass(frozen=True)
class EvictionPolicy:
    """Attributes:
    order: sort key of a candidate; the smallest leaves first.
    admits: whether documents leave for a new one. For the next token of a document in progress they leave anyway.
    """

    order: Callable[[Candidate], tuple[int, ...]]
    admits: bool = True


EVICTION_POLICIES: dict[str, EvictionPolicy] = {
    "drop_oldest": EvictionPolicy(lambda candidate: (candidate.arrived,)),
    "stop_new": EvictionPolicy(lambda candidate: (candidate.arrived,), admits=False),
    "least_recently_linked": EvictionPolicy(lambda candidate: (candidate.linked,)),
    "largest_first": EvictionPolicy(lambda candidate: (-len(candidate.document.tokens), candidate.arrived)),
}
"""By name, as GenerationConfig's `eviction_policy` takes it; add your own here."""
