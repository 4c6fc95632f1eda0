"""The tree of a result's documents and its line of figures."""

from __future__ import annotations

import io

from rich.console import Console

from ds2ds import GeneratedDocument, GenerationConfig, GenerationResult, Grant, Trace
from ds2ds.cli.summary import document_tree, figures, remark


def make_result(**trace: int) -> GenerationResult:
    root = GeneratedDocument(
        "root", tokens=[1] * 1200, is_root=True, grants=[Grant(3, "root"), Grant(5, "B", 9)], finish_reason="stop"
    )
    documents = [
        GeneratedDocument("A", tokens=[1], source="corpus", parent_title="root", depth=2),
        GeneratedDocument(
            "root",
            tokens=[1] * 5,
            source="corpus",
            parent_title="root",
            depth=1,
            truncated=True,
            grants=[Grant(2, "A")],
        ),
        GeneratedDocument("B", tokens=[1] * 7, parent_title="root", depth=1, finish_reason="eos"),
    ]
    return GenerationResult(root, documents, GenerationConfig(seed=7), Trace(**trace))


def test_documents_stand_under_what_brought_them_in() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(document_tree(make_result()))
    assert [line.rstrip() for line in out.getvalue().splitlines()] == [
        "root  generated, 1,200 tokens, stop",
        "reads root [3:], B [5:9]",
        "├── root  corpus, 5 tokens, cut",
        "│   reads A [2:]",
        "│   └── A  corpus, 1 token",
        "└── B  generated, 7 tokens, eos",
    ]


def test_figures() -> None:
    result = make_result(
        tokens_decoded=30, tokens_prefilled=1400, links_found=4, links_from_corpus=3, links_not_followed=1, evictions=2
    )
    result.trace.seconds.update(decode=0.5, sampling=0.25, total=1.234)
    assert figures(result, 31) == (
        "31 tokens written at 40.0 tokens/s · 1,400 prefilled · 4 documents · "
        "4 links (3 from the corpus, 1 not followed) · 2 evictions · 1.23 s · seed 7"
    )


def test_figures_of_a_greedy_run_that_wrote_nothing() -> None:
    result = make_result()
    result.generation_config = GenerationConfig(seed=7, temperature=0)
    assert figures(result, 0) == "0 tokens written · 0 prefilled · 4 documents · 0 links · 0.00 s"


def test_a_prompt_that_leaves_no_room_is_remarked_on() -> None:
    result = make_result()
    assert remark(result, 0) is None
    for reason, option in (
        ("context_full", "--max-context-length"),
        ("max_tokens_per_document", "--max-tokens-per-document"),
    ):
        result.root_document.finish_reason = reason
        assert remark(result, 1) is None
        assert option in str(remark(result, 0))
