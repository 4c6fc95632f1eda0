"""Results on disk: what is written, and what is never overwritten."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from homeless import no_home

from ds2ds import (
    GeneratedDocument,
    GenerationConfig,
    GenerationResult,
    Grant,
    create_filename,
    link_graph_html,
    link_graph_svg,
)
from ds2ds.errors import ConfigError, Ds2dsError
from ds2ds.generation.save import check_folder, graph, save_result

REST = {"graph.json", "result.json", "graph.svg", "graph.html"}


def make_result(*titles: str) -> GenerationResult:
    """A root called "root" that reads documents with these titles."""
    documents = [
        GeneratedDocument(title, tokens=[1, 2], text=f"about {title}", source="corpus", parent_title="root", depth=1)
        for title in titles
    ]
    grants = [Grant(place + 1, title) for place, title in enumerate(titles)]
    root = GeneratedDocument("root", tokens=[3] * 9, text="hé [a](a)\n", is_root=True, grants=grants)
    return GenerationResult(root, documents, GenerationConfig(seed=1))


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_file_for_each_document_the_graph_and_the_result(tmp_path: Path) -> None:
    result = make_result("C++", "C#")
    save_result(result, tmp_path / "a" / "out")
    out = tmp_path / "a" / "out"
    files = {f"{create_filename(title)}.md" for title in ("root", "C++", "C#")}
    assert names(out) == files | REST
    assert (out / "graph.svg").read_text(encoding="utf-8") == link_graph_svg(result)
    assert (out / "graph.html").read_text(encoding="utf-8") == link_graph_html(result)
    assert (out / f"{create_filename('root')}.md").read_text(encoding="utf-8") == "hé [a](a)\n"
    assert (out / f"{create_filename('C#')}.md").read_text(encoding="utf-8") == "about C#\n"
    assert json.loads((out / "result.json").read_text(encoding="utf-8")) == json.loads(json.dumps(result.to_dict()))
    saved = json.loads((out / "graph.json").read_text(encoding="utf-8"))
    assert saved == graph(result)
    assert {node["file"] for node in saved["nodes"]} == files
    assert names(tmp_path / "a") == {"out"}


def test_the_graph_says_who_reads_what_from_where() -> None:
    root = GeneratedDocument("root", tokens=[1] * 9, is_root=True, grants=[Grant(4, "A", 7, "a", "edit", 0.9)])
    root.finish_reason = "eos"
    leaf = GeneratedDocument("B", tokens=[1], source="corpus", parent_title="A", depth=2)
    middle = GeneratedDocument(
        "A", tokens=[1] * 3, parent_title="root", depth=1, grants=[Grant(2, "B")], truncated=True
    )
    a, b, r = (create_filename(title) for title in ("A", "B", "root"))
    found = graph(GenerationResult(root, [leaf, middle], GenerationConfig()))
    assert found["edges"] == [
        {"source": r, "target": a, "position": 4, "end": 7, "link": "a", "resolved_by": "edit", "score": 0.9},
        {"source": a, "target": b, "position": 2, "end": None, "link": "", "resolved_by": None, "score": None},
    ]
    by_id = {node["id"]: node for node in found["nodes"]}
    assert by_id[r]["parent"] is None and by_id[a]["parent"] == r and by_id[b]["parent"] == a
    assert by_id[b] == {
        "id": b,
        "title": "B",
        "file": f"{b}.md",
        "source": "corpus",
        "is_root": False,
        "depth": 2,
        "parent": a,
        "tokens": 1,
        "finish_reason": None,
        "truncated": False,
    }


def test_an_untitled_root_and_a_document_called_root_are_two(tmp_path: Path) -> None:
    result = make_result("root")
    save_result(result, tmp_path / "out")
    name = create_filename("root")
    assert names(tmp_path / "out") == {f"{name}.md", f"{name}_2.md", *REST}
    assert [(edge["source"], edge["target"]) for edge in graph(result)["edges"]] == [(name, f"{name}_2")]
    save_result(result, tmp_path / "out")  # it is known as a result again


def test_what_reads_a_document_that_is_not_there_is_not_saved(tmp_path: Path) -> None:
    result = make_result("A")
    result.root_document.grants.append(Grant(3, "B"))
    with pytest.raises(ConfigError, match="'root' reads 'B', but the result has none"):
        save_result(result, tmp_path / "out")
    assert names(tmp_path) == set()


def test_titles_longer_than_a_file_name(tmp_path: Path) -> None:
    save_result(make_result("x" * 400, "x" * 401, "日" * 400), tmp_path / "out")
    assert len(names(tmp_path / "out")) == 4 + len(REST)


def test_an_earlier_result_is_replaced_as_a_whole(tmp_path: Path) -> None:
    save_result(make_result("A", "B"), tmp_path / "out")
    save_result(make_result("C"), tmp_path / "out")
    assert f"{create_filename('C')}.md" in names(tmp_path / "out")
    assert f"{create_filename('A')}.md" not in names(tmp_path / "out")
    assert names(tmp_path) == {"out"}


def test_a_result_without_pictures_is_one_too(tmp_path: Path) -> None:
    save_result(make_result("A"), tmp_path / "out")
    for name in ("graph.svg", "graph.html"):
        (tmp_path / "out" / name).unlink()
    save_result(make_result("B"), tmp_path / "out")
    assert names(tmp_path / "out") > REST


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save_result(make_result("A"), tmp_path / "out")
    assert "graph.json" in names(tmp_path / "out")


def test_where_a_link_leads_is_where_it_goes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    for title in ("A", "B"):
        save_result(make_result(title), tmp_path / "link")
        assert f"{create_filename(title)}.md" in names(tmp_path / "disk" / "out")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == {"link", "disk"} and names(tmp_path / "disk") == {"out"}


@pytest.mark.parametrize("foreign", ["notes.md", "a_123456.txt", "folder"])
def test_anything_else_stays_unless_forced(tmp_path: Path, foreign: str) -> None:
    out = tmp_path / "out"
    save_result(make_result("A"), out)
    before = names(out) | {foreign}
    (out / foreign).mkdir() if foreign == "folder" else (out / foreign).write_text("mine")
    with pytest.raises(ConfigError, match="something else than an earlier result"):
        save_result(make_result("B"), out)
    assert names(out) == before
    save_result(make_result("B"), out, force=True)
    assert foreign not in names(out)


def test_a_folder_of_documents_without_the_graph_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "a_123456.md").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        check_folder(tmp_path)


def test_who_has_no_home_may_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_home(monkeypatch)
    check_folder(tmp_path)


def test_the_current_folder_and_home_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, home = tmp_path / "a" / "here", tmp_path / "b" / "home"
    here.mkdir(parents=True)
    home.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(Path, "home", lambda: home)
    for folder in (Path(), here, here.parent, home, home.parent):
        with pytest.raises(ConfigError, match="would be replaced"):
            save_result(make_result("A"), folder, force=True)
    save_result(make_result("A"), "new")
    assert "graph.json" in names(here / "new")


def test_what_a_result_comes_from_is_never_replaced(tmp_path: Path) -> None:
    model = tmp_path / "models" / "mine"
    model.mkdir(parents=True)
    for folder in (model, model.parent):
        with pytest.raises(ConfigError, match="mine is in it and would be replaced"):
            check_folder(folder, force=True, used=[model])
    check_folder(model / "out", used=[model])


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is a file"):
            save_result(make_result("A"), folder, force=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_on_an_error_the_earlier_result_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    save_result(make_result("A"), out)
    before = {entry.name: entry.read_bytes() for entry in out.iterdir()}
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError("no space")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(Ds2dsError, match="no space"):
        save_result(make_result("B"), out)
    assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == before
    assert names(tmp_path) == {"out"}
