"""Digits are names, not spelling."""

from __future__ import annotations

import re

_OTHER = re.compile(r"\D+")


def same_digits(one: str, other: str) -> bool:
    """Whether two titles have the same digits in the same order. "Windows 95" and "Windows 98" are alike by any
    measure of letters or of meaning, and are two things."""
    return _OTHER.sub("", one) == _OTHER.sub("", other)
