"""What an import statement imports, and the titles that may have it (see `python_imports`)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from keyword import kwlist

_NAME = rf"(?!(?:{'|'.join(kwlist)})\b)[^\W\d]\w*"
_DOTTED = rf"{_NAME}(?: ?\. ?{_NAME})*"
_ALIAS = rf"(?: as {_NAME})?"
_NAMES = rf"{_NAME}{_ALIAS}(?: ?, ?{_NAME}{_ALIAS})*"
_IMPORT = re.compile(rf"import ({_DOTTED}{_ALIAS}(?: ?, ?{_DOTTED}{_ALIAS})*) ?")
_FROM = re.compile(rf"from ?((?:\. ?)*)(?:({_DOTTED}) )?import( ?\*| {_NAMES}| ?\( ?{_NAMES} ?,? ?\)) ?")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: the module as written, dots before it counted, and what is taken from it."""

    level: int
    module: tuple[str, ...]
    name: str | None

    def __str__(self) -> str:
        path = ".".join((*self.module, self.name) if self.name else self.module)
        return "." * self.level + path


def _dotted(source: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in source.split("."))


def _without_alias(item: str) -> str:
    return item.partition(" as ")[0].strip()


def parse_statement(source: str) -> Iterator[Import]:
    """What an import statement imports, in order; nothing if it is none. Comments are gone, white space is single."""
    source = unicodedata.normalize("NFKC", source)
    if plain := _IMPORT.fullmatch(source):
        for item in plain[1].split(","):
            yield Import(0, _dotted(_without_alias(item)), None)
    elif (taken := _FROM.fullmatch(source)) and (taken[1] or taken[2]):
        module = _dotted(taken[2]) if taken[2] else ()
        if module == ("__future__",) and not taken[1]:
            return
        for item in taken[3].strip("( )").rstrip(", ").split(","):
            yield Import(taken[1].count("."), module, _without_alias(item))


def titles_of(found: Import, title: str) -> tuple[str, tuple[str, ...]] | None:
    """The target and the candidates of an import in the document `title`; None if it leads out of the tree."""
    source, colon, path = title.rpartition(":")
    folder = path.split("/")[:-1]
    if found.level - 1 > len(folder):
        return None
    base = folder[: len(folder) - found.level + 1] if found.level else []
    module = "/".join([*base, *found.module])
    # The top folder itself is a package with no name: only its __init__.py can stand for it.
    package = [f"{module}/__init__.py", f"{module}.py"] if module else ["__init__.py"]
    within = [] if found.name in (None, "*") else ["/".join(filter(None, [module, found.name]))]
    candidates = [f"{inner}{ending}" for inner in within for ending in ("/__init__.py", ".py")]
    if found.module:
        target = package[-1]
    else:  # `from . import c`: not the package is meant but what it has
        target = candidates[-1] if candidates else package[0]
        package = package[:1]
    prefix = source + colon
    return prefix + target, tuple(prefix + candidate for candidate in (*candidates, *package))
