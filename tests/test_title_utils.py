from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2ds.documents.title_utils import (
    create_filename,
    generate_title_hash,
    normalize_title,
    strip_hash,
    title_key,
    verify_title_hash,
)

TITLES = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("title", "normalized"),
    [
        ("Turing machine", "turing_machine"),
        ("C++", "c"),
        ("OS/2  Warp", "os2__warp"),
        ("Émile_4", "mile_4"),
        ("a\tb\nc", "abc"),
        ("日本", ""),
        ("", ""),
    ],
)
def test_normalize_title(title: str, normalized: str) -> None:
    assert normalize_title(title) == normalized


def test_hash_is_of_the_original_title() -> None:
    assert generate_title_hash("C++") == hashlib.md5(b"C++").hexdigest()[:6]
    assert generate_title_hash("é") == hashlib.md5("é".encode()).hexdigest()[:6]
    assert generate_title_hash("c++") != generate_title_hash("C++")


def test_titles_that_normalize_alike_have_different_filenames() -> None:
    names = {create_filename(title) for title in ("C", "c", "C++", "C#")}
    assert len(names) == 4
    assert {strip_hash(name) for name in names} == {"c"}


@given(TITLES)
def test_filename_round_trip(title: str) -> None:
    filename = create_filename(title)
    assert re.fullmatch(r"[a-z0-9_]*_[0-9a-f]{6}", filename)
    assert strip_hash(filename) == normalize_title(title)
    for name in (filename, f"{filename}.md", f"some/folder.d/{filename}.md", f"C:\\notes\\{filename}.md"):
        assert verify_title_hash(title, name)
    assert not verify_title_hash(title + "x", filename)


@pytest.mark.parametrize(
    "filename", ["", "title", "title_12345", "title_12345G", "title_ABCDEF", "title_1234567", "000000"]
)
def test_names_without_a_hash(filename: str) -> None:
    assert strip_hash(filename) == filename
    assert not verify_title_hash("title", filename)


def test_strip_hash_takes_one_hash_only() -> None:
    assert strip_hash("a_abcdef_012345") == "a_abcdef"
    assert strip_hash("a_012345\n") == "a_012345\n"


def test_title_key_folds_case_and_spacing_only() -> None:
    assert title_key("  Turing_Machine ") == title_key("turing \t machine") == "turing machine"
    assert title_key("STRASSE") == title_key("Straße")
    assert len({title_key(title) for title in ("C", "C++", "C#", "C.", "C -")}) == 5
    assert title_key("_") == title_key("") == ""


@given(TITLES)
def test_title_key_is_idempotent(title: str) -> None:
    assert title_key(title_key(title)) == title_key(title)
