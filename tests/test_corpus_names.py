from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.corpus.names import find_node, title_variants
from ds2ds.documents.title_utils import create_filename, title_key


@dataclass
class Titles:
    """The rule's three look-ups, spelled out over a list."""

    titles: list[str]

    def by_title(self, title: str) -> int | None:
        return self.titles.index(title) if title in self.titles else None

    def by_identifier(self, identifier: str) -> int | None:
        identifiers = list(map(create_filename, self.titles))
        return identifiers.index(identifier) if identifier in identifiers else None

    def by_key(self, key: str) -> int | None:
        found = [number for number, title in enumerate(self.titles) if title_key(title) == key]
        return found[0] if len(found) == 1 else None


def find(titles: list[str], title: str) -> str | None:
    number = find_node(Titles(titles), title)
    return None if number is None else titles[number]


def test_variants_are_in_order_and_without_repeats() -> None:
    assert title_variants("Linked_List ") == [
        "Linked_List ",
        "Linked List",
        create_filename("Linked_List "),
        "linked list",
    ]
    assert title_variants("c") == ["c", create_filename("c")]


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("C++", "C++"),
        ("c++", "C++"),
        ("C", "C"),
        ("C#", None),
        ("c_0d61f8", "C"),  # an identifier
        ("c_ffffff", None),  # of another title: it is not cut back to "c"
        ("linked_list", "Linked list"),
        (" LINKED \t list", "Linked list"),
        ("unix", "unix"),
        ("Unix", "Unix"),
        ("UNIX", None),  # either of the two
        ("uni_x", None),
        ("", None),
    ],
)
def test_the_rule(title: str, expected: str | None) -> None:
    assert find(["C", "C++", "Linked list", "unix", "Unix"], title) == expected


def test_a_folded_title_does_not_become_exact() -> None:
    assert find(["unix", "UNIX"], "Unix") is None


def test_an_exact_match_with_single_spaces_comes_before_the_folded_one() -> None:
    assert find(["Linked list", "LINKED LIST"], "Linked_list") == "Linked list"


@settings(deadline=None)
@given(st.lists(st.text("aA+# _", min_size=1, max_size=4), unique=True), st.text("aA+# _", max_size=4))
def test_what_is_found_differs_in_case_and_spacing_only(titles: list[str], title: str) -> None:
    found = find(titles, title)
    same = [name for name in titles if title_key(name) == title_key(title)]
    if title in titles:
        assert found == title
    elif len(same) == 1:
        assert found == same[0]
    else:
        assert found is None or found in same
