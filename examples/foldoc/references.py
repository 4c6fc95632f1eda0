"""Which document a FOLDOC cross reference means.

FOLDOC's `{name}` is meant for readers: the name may be a headword in another case, a plural, hyphenated
otherwise, or a company without its "Inc.". A name is tried exactly first, then with each of these
liberties in turn; the first that finds an entry wins.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

_COMPANY_SUFFIX = re.compile(
    r",? (?:Inc|Incorporated|Corp|Corporation|Ltd|Limited|Co|Company|plc|PLC|GmbH|AG|Pty|LLC|S\.A)\.?$"
)


class NameIndex:
    """Names of documents, looked up exactly, then by ever looser keys.

    `names` gives (name, title) pairs in order of precedence: where two documents claim a name exactly, the first
    keeps it; where a looser key is claimed twice, the name spelt most like the reference wins, then the first.
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        self._exact: dict[str, str] = {}
        for name, title in names:
            self._exact.setdefault(name, title)
        self._folded: dict[str, list[str]] = defaultdict(list)
        self._squeezed: dict[str, list[str]] = defaultdict(list)
        self._companies: dict[str, list[str]] = defaultdict(list)
        for name in self._exact:
            self._folded[name.casefold()].append(name)
            self._squeezed[_squeeze(name)].append(name)
            self._companies[_company(name)].append(name)

    def resolve(self, reference: str) -> str | None:
        """The title that `reference` (white space already single) means, or None."""
        if reference in self._exact:
            return self._exact[reference]
        for names in self._candidates(reference):
            if names:
                best = min(names, key=lambda name: _differences(name, reference))  # min keeps the first of equals
                return self._exact[best]
        return None

    def _candidates(self, reference: str) -> Iterator[list[str]]:
        numbers = list(_other_numbers(reference))
        yield self._folded.get(reference.casefold(), [])
        for form in numbers:
            yield self._folded.get(form.casefold(), [])
        for form in [reference, *numbers]:
            # Short names differ by little else than their punctuation: "C", "C-", "C#".
            if len(_squeeze(form)) >= 4:
                yield self._squeezed.get(_squeeze(form), [])
        yield self._companies.get(_company(reference), [])


def _squeeze(name: str) -> str:
    return re.sub(r"[-\s]", "", name.casefold())


def _company(name: str) -> str:
    """The name without its legal form, folded: "Bell Communications Research, Inc." -> "bell communications research"."""
    while (shorter := _COMPANY_SUFFIX.sub("", name)) != name:
        name = shorter
    return name.casefold()


def _other_numbers(name: str) -> Iterator[str]:
    """The name in the singular (if it may be a plural) and in the plural: "libraries" -> "library", "librarieses"."""
    stem = re.sub(r"'s?$", "", name)
    if stem != name:
        yield stem
    if stem.endswith("ies") and len(stem) > 4:
        yield stem[:-3] + "y"
    if stem.endswith("ices") and len(stem) > 5:
        yield stem[:-4] + "ix"
        yield stem[:-4] + "ex"
    if re.search(r"(?:s|x|z|ch|sh|o)es$", stem):
        yield stem[:-2]
    # "PCs" is a plural, "DOS" and "class" are not.
    if stem.endswith("s") and not stem.endswith("ss") and len(stem) > 2:
        yield stem[:-1]
    yield name + "s"
    if name.endswith("y"):
        yield name[:-1] + "ies"


def _differences(name: str, reference: str) -> int:
    return abs(len(name) - len(reference)) + sum(a != b for a, b in zip(name, reference, strict=False))
