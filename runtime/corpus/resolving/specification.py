"""Resolvers as a user writes them: ``exact,folded,edit:0.9``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds2ds.corpus.resolving.exact import EXACT
from ds2ds.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ResolverSpec:
    """One resolver, ``NAME[=SOURCE][:MINIMUM]``.

    Attributes:
        source: the file of redirects, or the model of embeddings.
        minimum: the least score that counts as found; None: the resolver's own.
    """

    name: str
    source: str | None = None
    minimum: float | None = None


FORMS = {
    EXACT: EXACT,
    "folded": "folded",
    "redirects": "redirects[=FILE]",
    "edit": "edit[:MINIMUM]",
    "embeddings": "embeddings=MODEL[:MINIMUM]",
}


def parse_resolver(text: str) -> ResolverSpec:
    """Read one resolver.

    Raises:
        ConfigError: there is no such resolver, it takes no such argument, or its minimum is not in (0, 1].
    """
    name = text.partition("=")[0].partition(":")[0]
    if name not in FORMS:
        raise ConfigError(f"unknown resolver {text!r}: there are {', '.join(FORMS.values())}")
    form, rest = FORMS[name], text[len(name) :]
    minimum: float | None = None
    if ":MINIMUM" in form and ":" in rest:
        rest, _, number = rest.rpartition(":")
        try:
            minimum = float(number)
        except ValueError:
            raise ConfigError(f"resolver {text!r}: expected {form}, got the minimum {number!r}") from None
        if not 0 < minimum <= 1:
            raise ConfigError(f"resolver {text!r}: its minimum must be in (0, 1], got {minimum}")
    source = rest[1:] or None if rest.startswith("=") and "=" in form else None
    if (rest and source is None) or (source is None and "=MODEL" in form):
        raise ConfigError(f"resolver {text!r}: expected {form}")
    return ResolverSpec(name, source, minimum)


def resolver_order(texts: str | Sequence[str]) -> tuple[str, ...]:
    """Check a list of resolvers, or one string with commas between them; exact is put first if it is not listed.

    What the corpus has under just this title wins over whatever looks like it, so exact is first or nowhere.

    Raises:
        ConfigError: as ``parse_resolver``, or exact is not the first.
    """
    listed = [text.strip() for text in texts.split(",")] if isinstance(texts, str) else list(texts)
    for text in listed:
        if not isinstance(text, str):
            raise ConfigError(f"a resolver is written as a string, got {text!r}")
        parse_resolver(text)
    if EXACT in listed[1:]:
        raise ConfigError(f"resolver 'exact' is always the first, got {listed}")
    return tuple(listed if listed[:1] == [EXACT] else [EXACT, *listed])
