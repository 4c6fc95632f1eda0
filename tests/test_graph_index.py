from __future__ import annotations

import random
from pathlib import Path

import pytest
from foreign_corpus import write_foreign_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.corpus.graph_index import GraphIndex
from ds2ds.corpus.index import INDEX_NAME
from ds2ds.errors import CorpusError

TOKENS = {"C": [1, 2], "C++": [3], "Linked list": [], "Tree": [4, 5, 6]}
LINKS = {"C++": ["C", "Tree", "Nowhere"], "Tree": ["C"]}


@pytest.fixture
def graph(tmp_path: Path) -> GraphIndex:
    return GraphIndex(write_foreign_corpus(tmp_path / "corpus", TOKENS, LINKS))


def test_nodes_are_found_by_title_and_identifier(graph: GraphIndex) -> None:
    node = graph.find("C++")
    assert node is not None
    assert (node.title, node.identifier, node.number) == ("C++", "id:C++", 1)
    assert (node.shard, node.offset, node.length) == (0, 1028, 1)
    assert graph.find("id:C++") == node
    assert graph.find("linked_LIST") == graph.node(2)
    assert graph.find("C#") is None
    assert "tree" in graph
    assert "trees" not in graph
    assert 7 not in graph


def test_iteration_keeps_the_files_order(graph: GraphIndex) -> None:
    assert len(graph) == 4
    assert list(graph) == list(TOKENS)
    assert [node.number for node in graph.nodes()] == [0, 1, 2, 3]


def test_iteration_turns_pages(graph: GraphIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds2ds.corpus.graph_index._PAGE", 3)
    assert list(graph) == list(TOKENS)


def test_edges_are_titles_and_unknown_ones_identifiers(graph: GraphIndex) -> None:
    assert graph.outgoing("C++") == ["C", "Tree", "id:Nowhere"]
    assert graph.incoming("c") == ["C++", "Tree"]
    assert graph.outgoing("C") == []
    with pytest.raises(CorpusError, match="no document called 'C#'"):
        graph.outgoing("C#")


def test_totals(graph: GraphIndex) -> None:
    assert graph.totals() == (6, 4)


def test_a_number_out_of_range_is_an_error(graph: GraphIndex) -> None:
    with pytest.raises(IndexError, match="node 4 of 4"):
        graph.node(4)


def test_an_index_that_is_damaged_anywhere_is_named_or_built_anew(graph: GraphIndex) -> None:
    graph.close()
    index = graph.folder / INDEX_NAME
    whole = index.read_bytes()
    filled = [place for place, byte in enumerate(whole) if byte]
    draw = random.Random(1)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for place in draw.sample(filled, draw.choice([1, 30])):
            data[place] = draw.randrange(256)
        index.write_bytes(data)
        try:
            damaged = GraphIndex(graph.folder)
            for title in TOKENS:
                damaged.find(title)
                damaged.outgoing("Tree")
            assert len(damaged) > 0
        except CorpusError:
            refused += 1
    assert refused


def test_a_graph_that_changes_under_an_open_index_is_noticed(graph: GraphIndex) -> None:
    path = graph.folder / "tokenized_graph.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0].replace('"C"', '"D"'), *lines[1:]]))
    with pytest.raises(CorpusError, match="line 1: changed since"):
        graph.outgoing("C")


def test_of_two_documents_with_one_title_the_first_counts(tmp_path: Path) -> None:
    folder = write_foreign_corpus(tmp_path, {"A": [1], "B": [2]})
    path = folder / "tokenized_graph.jsonl"
    path.write_text(path.read_text().replace('"B"', '"A"'))
    graph = GraphIndex(folder)
    found = [graph.find(title) for title in ("A", "a")]
    assert [node and node.number for node in found] == [0, 0]


def test_what_titles_mean_is_remembered_of_some(graph: GraphIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds2ds.corpus.graph_index._REMEMBERED", 3)
    asked: list[str] = []
    query = graph._database.query
    monkeypatch.setattr(graph._database, "query", lambda sql, *names: asked.append(sql) or query(sql, *names))
    first = [graph.find(title) for title in ("C", "Trees", "tree")]
    count = len(asked)
    assert [graph.find(title) for title in ("C", "Trees", "tree")] == first and len(asked) == count
    assert first[0] is not None and first[1] is None and first[2] == graph.find("Tree")  # one too many: forgotten
    count = len(asked)
    assert [graph.find(title) for title in ("C", "Trees", "tree")] == first and len(asked) > count
    assert len(graph._found) <= 3


def test_after_close_look_ups_are_errors(graph: GraphIndex) -> None:
    graph.close()
    graph.close()
    with pytest.raises(CorpusError, match="closed"):
        graph.find("C")


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), st.lists(st.integers(0, 9), max_size=3), min_size=1))
def test_any_titles_read_back(tmp_path_factory: pytest.TempPathFactory, documents: dict[str, list[int]]) -> None:
    graph = GraphIndex(write_foreign_corpus(tmp_path_factory.mktemp("graph"), documents))
    assert list(graph) == list(documents)
    for number, (title, tokens) in enumerate(documents.items()):
        node = graph.find(title)
        assert node is not None
        assert (node.number, node.title, node.length) == (number, title, len(tokens))
    graph.close()
