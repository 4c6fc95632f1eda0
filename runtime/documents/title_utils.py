"""Titles of documents: their normalised form, their file name, and the key under which look-ups find them.

A file name is `{normalised title}_{hash}`. Normalising loses information ("C++" and "C#" both become "c"),
so the hash, taken of the original title, is what tells such titles apart.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

_HASH_LENGTH = 6
_NOT_KEPT = re.compile(r"[^a-z0-9_]")
_HASH_SUFFIX = re.compile(rf"_([0-9a-f]{{{_HASH_LENGTH}}})\Z")
_SPACES = re.compile(r"[\s_]+")


def normalize_title(title: str) -> str:
    """`title` in lower case, each space as `_`, everything outside `[a-z0-9_]` dropped. May be empty."""
    return _NOT_KEPT.sub("", title.lower().replace(" ", "_"))


def generate_title_hash(title: str) -> str:
    """The first six hex digits of the MD5 of the original title (UTF-8)."""
    return hashlib.md5(title.encode(), usedforsecurity=False).hexdigest()[:_HASH_LENGTH]


def create_filename(title: str) -> str:
    """The file name (no extension) that stands for `title`: `{normalize_title}_{generate_title_hash}`."""
    return f"{normalize_title(title)}_{generate_title_hash(title)}"


def strip_hash(filename: str) -> str:
    """`filename` without a trailing `_` and six hex digits; unchanged where it has none."""
    return _HASH_SUFFIX.sub("", filename)


def verify_title_hash(title: str, filename: str) -> bool:
    """Whether the hash in `filename`, which may have folders and an extension, is that of `title`."""
    stem = filename.replace("\\", "/").rpartition("/")[2].partition(".")[0]
    found = _HASH_SUFFIX.search(stem)
    return found is not None and found[1] == generate_title_hash(title)


@lru_cache(maxsize=2**14)  # of every document in view, for every link
def title_key(title: str) -> str:
    """What two titles share that differ in case and spacing only.

    Case is folded, runs of whitespace and `_` become one space. Punctuation is kept: "C", "C++" and "C#" have
    different keys.
    """
    return _SPACES.sub(" ", title.casefold()).strip()
