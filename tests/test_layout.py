"""What stands around a document's body."""

from __future__ import annotations

import pytest

from ds2ds.documents.layout import LAYOUT_POLICIES, Layout, heading_title
from ds2ds.errors import ConfigError

EOS = 999


def codes(text: str) -> list[int]:
    return [ord(character) for character in text]


HEADING = codes("# Big O\n\n")
BODY = codes("text")


@pytest.mark.parametrize(
    ("policy", "prefix", "suffix"),
    [
        ("null", [], []),
        ("bos_eos", [EOS], [EOS]),
        ("identifier_prefix", HEADING, []),
        ("identifier_prefix_bos_eos", [EOS, *HEADING], [EOS]),
    ],
)
def test_each_policy(policy: str, prefix: list[int], suffix: list[int]) -> None:
    layout = Layout(policy, codes, EOS)
    assert layout.prefix("Big O") == prefix
    assert layout.suffix() == suffix
    assert layout.wrap("Big O", BODY) == [*prefix, *BODY, *suffix]
    assert layout.has_marks == bool(suffix)
    assert layout.has_heading == (HEADING[0] in prefix)


def test_these_are_all_policies() -> None:
    assert LAYOUT_POLICIES == ("null", "bos_eos", "identifier_prefix", "identifier_prefix_bos_eos")


@pytest.mark.parametrize("policy", ["nothing", "", None, "BOS_EOS"])
def test_an_unknown_policy_is_named(policy: str) -> None:
    with pytest.raises(ConfigError, match=rf"layout_policy must be one of .*'bos_eos'.*, got {policy!r}"):
        Layout(policy, codes, EOS)


def test_wrapped_ids_are_plain_integers() -> None:
    import numpy as np

    wrapped = Layout("bos_eos", codes, EOS).wrap("A", np.array([1, 2], dtype=np.uint16))
    assert wrapped == [EOS, 1, 2, EOS] and all(type(token) is int for token in wrapped)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Big O\n\nIt grows", "Big O"),
        ("# Big O\n", "Big O"),
        ("#  C++ \n\n", "C++"),
        ("# Big O", None),  # the heading may go on
        ("## Big O\n\n", None),
        ("#\n\n", None),
        ("text\n# Big O\n\n", None),
        ("", None),
    ],
)
def test_the_title_is_read_from_a_complete_heading(text: str, title: str | None) -> None:
    assert heading_title(text) == title
