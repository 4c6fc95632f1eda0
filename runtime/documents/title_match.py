"""What a look-up of a title found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """A document that a title was taken to mean.

    Attributes:
        title: the raw title under which the corpus knows it.
        resolver: the name of the resolver that found it: "exact", "folded", ...
        score: how sure that one is, in [0, 1]; 1 for rules that know no degrees.
    """

    title: str
    resolver: str
    score: float = 1.0


def found_by(match: Match | None) -> tuple[str | None, float | None]:
    """The resolver's name and its score, as events and results tell them; twice None where nothing was found."""
    return (None, None) if match is None else (match.resolver, match.score)
