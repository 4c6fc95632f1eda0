"""What a request returns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ds2ds import GeneratedDocument, GenerationConfig, GenerationResult, Grant, Trace


def document(title: str, **fields: object) -> GeneratedDocument:
    return GeneratedDocument(title=title, **{"tokens": [1], **fields})  # type: ignore[arg-type]


def test_tokens_or_text_must_be_there() -> None:
    with pytest.raises(ValueError, match="document 'A' needs tokens or text, got neither"):
        GeneratedDocument("A")
    assert GeneratedDocument("A", tokens=[]).text is None
    assert GeneratedDocument("A", text="").tokens is None


@pytest.mark.parametrize("source", ["generated", "corpus", "supplied", Path("notes/a.md")])
def test_sources(source: str | Path) -> None:
    assert document("A", source=source).source == source


def test_another_source_is_an_error() -> None:
    with pytest.raises(ValueError, match="source must be 'generated', 'corpus', 'supplied' or a Path, got 'elsewhere'"):
        document("A", source="elsewhere")


def test_the_normalized_title_is_made_unless_given() -> None:
    assert document("Big O!").title_normalized == "big_o"
    assert document("Big O!", title_normalized="mine").title_normalized == "mine"


def test_the_table_of_the_design_in_its_order() -> None:
    made = GeneratedDocument("A", "a", [1], "text", "corpus", False, "Root")
    assert (made.title, made.title_normalized, made.tokens, made.text) == ("A", "a", [1], "text")
    assert (made.source, made.is_root, made.parent_title) == ("corpus", False, "Root")


@pytest.fixture
def result() -> GenerationResult:
    root = document("Root", is_root=True, token_logprobs=np.array([np.nan], dtype=np.float32))
    others = [document("C"), document("C++", parent_title="Root"), document("c", title_normalized="zzz")]
    return GenerationResult(root, others, GenerationConfig(stop="x"), Trace(links_found=2))


def test_all_documents_root_first(result: GenerationResult) -> None:
    assert [d.title for d in result.get_all_documents()] == ["Root", "C", "C++", "c"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("Root", "Root"),
        ("C++", "C++"),
        ("c", "c"),  # an original title wins over a normalized one
        ("zzz", "c"),
        ("root", "Root"),
        ("ROOT", "Root"),
        ("C#", "C"),  # normalized alike: the first
        ("D", None),
    ],
)
def test_documents_by_title(result: GenerationResult, asked: str, found: str | None) -> None:
    document = result.get_document_by_title(asked)
    assert (document and document.title) == found


def test_as_json(result: GenerationResult) -> None:
    result.root_document.grants.append(Grant(3, "C", None))
    result.root_document.token_logprobs = np.array([np.nan, -0.5], dtype=np.float32)
    result.auxiliary_documents[0].source = Path("notes/c.md")
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["root_document"]["grants"] == [
        {"position": 3, "title": "C", "end": None, "link": "", "resolved_by": None, "score": None}
    ]
    assert read["root_document"]["token_logprobs"] == [None, -0.5]
    assert read["auxiliary_documents"][0]["source"] == "notes/c.md"
    assert read["auxiliary_documents"][0]["token_logprobs"] is None
    assert read["generation_config"] == GenerationConfig(stop="x").to_dict()
    assert read["trace"]["links_found"] == 2


def test_tokens_of_any_kind_as_json() -> None:
    made = document("A", tokens=np.array([1, 2], dtype=np.uint16)).to_dict()
    assert json.dumps(made["tokens"]) == "[1, 2]"
    assert GeneratedDocument("A", text="x").to_dict()["tokens"] is None


def test_documents_do_not_share_their_lists() -> None:
    one, other = document("A"), document("B")
    one.grants.append(Grant(1, "B"))
    assert other.grants == []
    first, second = Trace(), Trace()
    first.seconds["total"] = 1.0
    assert second.seconds["total"] == 0.0


def test_the_trace_counts_forward_passes_by_phase() -> None:
    trace = Trace()
    trace.count_forward(7, 0, 0.5)
    trace.count_forward(0, 1, 0.25)
    trace.count_decoded(0.25)
    assert (trace.forward_passes, trace.tokens_prefilled, trace.tokens_decoded) == (3, 7, 2)
    assert trace.seconds == {"prefill": 0.5, "decode": 0.5, "sampling": 0.0, "total": 0.0}
