"""Which document a FOLDOC cross reference means.

FOLDOC's `{name}` is meant for readers: the name may be a headword in another case, a plural, hyphenated
otherwise, or a company without its "Inc.". A name is tried exactly first, then with each of these
liberties in turn; the first that finds an entry wins.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

_COMPANY_SUFFIX = re.compile(
    r",? (?:Inc|Incorporated|Corp|Corporation|Ltd|Limited|Co|Company|plc|PLC|GmbH|AG|Pty|LLC|S\.A)\.?$"
)


class NameIndex:
    """Names of documents, looked up exactly, then by ever looser keys.

    `names` gives (name, title) pairs in order of precedence: where two documents claim a name exactly, the
    first keeps it; where a looser key is claimed twice, the name spelt most like the reference wins, then the
    first.
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        self._titles: dict[str, str] = {}
        for name, title in names:
            self._titles.setdefault(name, title)
        self._initials = self._index(_fold_initials)
        self._folded = self._index(str.casefold)
        self._squeezed = self._index(_squeeze)
        self._companies = self._index(_company)

    def _index(self, key: Callable[[str], str]) -> dict[str, list[str]]:
        index: dict[str, list[str]] = defaultdict(list)
        for name in self._titles:
            index[key(name)].append(name)
        return dict(index)

    def resolve(self, reference: str) -> str | None:
        """The title that `reference` (its white space single) means, or None."""
        for names in self._candidates(reference):
            if names:
                # min() keeps the first of equals
                return self._titles[min(names, key=lambda name: _differences(name, reference))]
        return None

    def _candidates(self, reference: str) -> Iterator[list[str]]:
        """Names that may be meant, the surest first."""
        singulars = list(_singulars(reference))
        forms = [reference, *singulars]
        yield from ([form] for form in [*forms, *_plurals(reference)] if form in self._titles)
        yield from (self._initials.get(_fold_initials(form), []) for form in forms)
        yield self._folded.get(reference.casefold(), [])
        yield from (_no_acronyms(form, self._folded.get(form.casefold(), [])) for form in singulars)
        # Short names differ in little else than their punctuation: "C", "C-", "C#".
        for form in forms:
            if len(form) > 3:
                yield _no_acronyms(form, self._squeezed.get(_squeeze(form), []))
        # "Quantum Corporation" is no "quantum".
        companies = self._companies.get(_company(reference), [])
        yield [name for name in companies if name[:1] == reference[:1]]


def _no_acronyms(word: str, names: list[str]) -> list[str]:
    """What is left of `names` for a word in lower case: "assets" are not several of the project ASSET."""
    return [name for name in names if not (word.islower() and name.isupper())]


def _fold_initials(name: str) -> str:
    return re.sub(r"\b\w", lambda initial: initial[0].lower(), name)


def _squeeze(name: str) -> str:
    return re.sub(r"(?<=\w)[-\s]+(?=\w)", "", name).casefold()


def _company(name: str) -> str:
    """The name without its legal form, folded: "Novell, Inc." -> "novell"."""
    while (shorter := _COMPANY_SUFFIX.sub("", name)) != name:
        name = shorter
    return name.casefold()


def _singulars(name: str) -> Iterator[str]:
    """What the name may be the plural or possessive of: "indices" -> "indix", "index", "indice"."""
    if name.endswith(("'s", "'")):
        yield re.sub(r"'s?$", "", name)
    if name.endswith("ies") and len(name) > 4:
        yield name[:-3] + "y"
    if name.endswith("ices"):
        yield name[:-4] + "ix"
        yield name[:-4] + "ex"
    if re.search(r"(?:s|x|z|ch|sh|o)es$", name):
        yield name[:-2]
    if name.endswith("s") and not name.endswith("ss") and len(name) > 2:  # "PCs" is a plural, "DOS" and "class" are not
        yield name[:-1]


def _plurals(name: str) -> Iterator[str]:
    yield name + "s"
    if name.endswith("y"):
        yield name[:-1] + "ies"


def _differences(name: str, reference: str) -> int:
    return abs(len(name) - len(reference)) + sum(a != b for a, b in zip(name, reference, strict=False))
