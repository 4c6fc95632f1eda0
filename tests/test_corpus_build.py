from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.corpus.build.front_matter import FrontMatter, read_front_matter
from ds2ds.corpus.build.links import format_link
from ds2ds.corpus.build.markdown_folder import build_corpus
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.corpus.search import corpus_tokenizer, document_text
from ds2ds.documents.link_scanner import LinkScanner
from ds2ds.errors import ConfigError, CorpusError


def write_notes(folder: Path, notes: dict[str, str]) -> Path:
    for name, text in notes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder


@pytest.fixture
def built(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Builds a corpus of notes; gives title -> body."""

    def build(notes: dict[str, str], **options: object) -> dict[str, str | None]:
        write_notes(tmp_path / "notes", notes)
        build_corpus(tmp_path / "notes", tmp_path / "corpus", force=True, **options)  # type: ignore[arg-type]
        with DocumentCorpus(tmp_path / "corpus") as corpus:
            tokenizer = corpus_tokenizer(corpus)
            return {title: document_text(corpus, title, tokenizer) for title in corpus.titles()}

    return build


# Front matter


@pytest.mark.parametrize(
    ("text", "title", "aliases", "body"),
    [
        ("---\ntitle: A b\naliases: [c, D e]\n---\nbody", "A b", ("c", "D e"), "body"),
        ("---\naliases:\n  - c\n  - 7\n---\nbody\n---\n", None, ("c", "7"), "body\n---\n"),
        ("---\ntitle: 2020-01-01\nalias: a, b\n...\nbody", "2020-01-01", ("a", "b"), "body"),
        ("---\ntitle: >\n  folded\n  text\n---\nbody", "folded text", (), "body"),
        ('---\n{"title": "\\ud83d\\ude00 b", "aliases": ["\\ud83d\\ude80"]}\n---\nbody', "😀 b", ("🚀",), "body"),
        ('---\ntitle: "a\\ud800"\naliases: ["\\udc00"]\n---\nbody', "a\ufffd", ("\ufffd",), "body"),
        ("---\n---\nbody", None, (), "body"),
        ("---\ntitle:\naliases:\n---\n", None, (), ""),
        ("---\ntitle: [a]\naliases: {a: b}\n---\nbody", None, (), "body"),
        ("body\n---\ntitle: no\n---\n", None, (), "body\n---\ntitle: no\n---\n"),
        ("---\ntitle: never closed\n", None, (), "---\ntitle: never closed\n"),
        ("----\ntitle: rule\n---\n", None, (), "----\ntitle: rule\n---\n"),
    ],
)
def test_front_matter(text: str, title: str | None, aliases: tuple[str, ...], body: str) -> None:
    assert read_front_matter(text) == (FrontMatter(title, aliases), body)


@pytest.mark.parametrize(
    "block",
    [
        "title: a: b",
        "title: {{title}}",
        "- a",
        "title: \t- [",
        "a: " + "[" * 3000,
        r'a: "\UFFFFFFFF"',
        r'a: "\U00110000"',
    ],
)
def test_front_matter_that_is_no_mapping_is_reported(block: str) -> None:
    matter, body = read_front_matter(f"---\n{block}\n---\nbody")
    assert matter.title is None
    assert matter.problem
    assert "\n" not in matter.problem
    assert body == "body"


# Links as markdown


@pytest.mark.parametrize(
    ("text", "title", "markdown"),
    [
        ("a", "Plain title", "[a](Plain title)"),
        ("a", "Smalltalk (language)", "[a](Smalltalk (language))"),
        ("a", "C#", "[a](C#)"),
        ("a", "one )", "[a](<one )>)"),
        ("a", 'the "quoted"', '[a](<the "quoted">)'),
        ("a", "x > y )", r"[a](<x \> y )>)"),
        ("`code` *b*", "T", "[`code` *b*](T)"),
        ("a]b", "T", r"[a\]b](T)"),
    ],
)
def test_format_link_escapes_only_where_needed(text: str, title: str, markdown: str) -> None:
    assert format_link(text, title) == markdown


@settings(deadline=None, max_examples=500)
@given(
    st.text(st.sampled_from("ab ()[]<>\\`!\"'&;*_#|日\n"), max_size=8),
    st.text(st.sampled_from("ab ()[]<>\\`!\"'&;*_#|日"), min_size=1, max_size=10).map(str.strip).filter(bool),
)
def test_every_title_round_trips_through_the_scanner(text: str, title: str) -> None:
    data = format_link(" ".join(text.split()), title).encode()
    (link,) = LinkScanner().feed(data)
    assert (link.target, link.start, link.end) == (title, 0, len(data))


# What a link means


def test_wikilinks_become_links_to_titles(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built(
        {
            "Home.md": (
                "[[Tree]] [[tree]] [[Tree|a tree]] [[Tree#Roots|roots]] [[Tree#Roots]] [[Tree.md]] [[sub/Leaf]] "
                "[[Leaf]] [[C#]] [[C# (x)|y]] [[Nowhere]] [[Nowhere#a|b]] [[#here]] [[#here|this]] [[Tree\\|cell]] [[]]"
            ),
            "Tree.md": "t",
            "sub/Leaf.md": "l",
            "C#.md": "c",
        }
    )
    assert bodies["Home"] == (
        "[Tree](Tree) [tree](Tree) [a tree](Tree) [roots](Tree) [Tree > Roots](Tree) [Tree](Tree) [sub/Leaf](Leaf) "
        "[Leaf](Leaf) [C#](C#) [y](C) [Nowhere](Nowhere) [b](Nowhere) here this [cell](Tree) [[]]"
    )


def test_relative_links_become_links_to_titles(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built(
        {
            "a/One.md": (
                "[x](Two%20words.md) [x](<Two words.md>) [x](../Top.md#part) [x](./Two%20words) [x](/Top.md) [x](Top) "
                "[x](a/One.md) [**bold** `c`](../Top.md 'title') [![i](i.png)](../Top.md) [x](gone/No%20note.md) "
                "[x](file.pdf) [x](https://a.b/c.md) [x](mailto:a@b) [x](#place) [x]()"
            ),
            "a/Two words.md": "t",
            "Top.md": "t",
        }
    )
    assert bodies["One"] == (
        "[x](Two words) [x](Two words) [x](Top) [x](Two words) [x](Top) [x](Top) "
        "[x](One) [**bold** `c`](Top) [![i](i.png)](Top) [x](No note) "
        "[x](file.pdf) [x](https://a.b/c.md) [x](mailto:a@b) x [x]()"
    )


def test_code_images_and_attachments_are_left_alone(built) -> None:  # type: ignore[no-untyped-def]
    body = (
        "`[[T]]` ``[[T]] ` [x](T.md)`` \\[[T]] ![[T]] ![[pic.png]] [[pic.png]] [[pic.png|see]] ![x](T.md)\n\n"
        "```\n[[T]] [x](T.md)\n```\n\n- item\n\n  ~~~\n  [[T]]\n  ~~~\n\ntext\n\n    [[T]] indented\n\n> ```\n> [[T]]"
    )
    bodies = built({"Note.md": body + "\n\n[[T]]", "T.md": "t", "img/pic.png": ""})
    assert bodies["Note"] == body + "\n\n[T](T)"


def test_links_without_text_to_a_place_in_the_note_are_left_alone(built) -> None:  # type: ignore[no-untyped-def]
    notes = {"a.md": "[](#top)", "b.md": "[[#^| ]]"}
    assert built(notes) == {"a": notes["a.md"], "b": notes["b.md"]}


def test_a_run_of_backticks_is_closed_by_one_as_long_alone(built) -> None:  # type: ignore[no-untyped-def]
    many = " ".join("`" * length for length in range(1, 150))  # quadratic in time if parts of a run were tried, too
    notes = {"a.md": "x ```[[b]]`` y", "b.md": many}
    assert built(notes) == {"a": "x ```[b](b)`` y", "b": many}


def test_no_name_of_a_note_that_is_not_there_stops_the_build(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built({"Note.md": "[[New .md]] [[a\u2028b]] [x](sub/New%20.md) [x](a%0Ab.md) [x](sub/%20.md)"})
    assert bodies["Note"] == "[New](New) [a b](a b) [x](New) [x](a b) [x](sub/%20.md)"


def test_an_open_code_span_ends_with_its_paragraph(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built({"Note.md": "`open [[T]]\n\n`[[T]] x", "T.md": "t"})
    assert bodies["Note"] == "`open [T](T)\n\n`[T](T) x"


def test_titles_and_aliases_of_front_matter_lead_to_the_note(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built(
        {
            "n1.md": "---\ntitle: Real title\naliases: [Old name, older]\n---\nbody",
            "n2.md": "[[Old Name]] [[older|x]] [[n1]] [[real title]] [y](n1.md) [y](Old%20name)",
        }
    )
    assert bodies["Real title"] == "body"
    assert bodies["n2"] == (
        "[Old Name](Real title) [x](Real title) [n1](Real title) [real title](Real title) "
        "[y](Real title) [y](Real title)"
    )


def test_accents_may_be_characters_of_their_own(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built(
        {
            "n1.md": "---\ntitle: Caf\u00e9\naliases: [e\u0301t\u00e9]\n---\n# Cafe\u0301\n\nbody",
            "n2.md": "[[Cafe\u0301]] [[\u00e9te\u0301|x]]",
        }
    )
    assert bodies["Caf\u00e9"] == "body"
    assert bodies["n2"] == "[Cafe\u0301](Caf\u00e9) [x](Caf\u00e9)"


def test_case_decides_where_it_can(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built(
        {
            "1.md": "---\ntitle: shell\n---\nx",
            "2.md": "---\ntitle: SHELL\n---\nx",
            "a/Tree.md": "x",
            "b/tree.md": "x",
            "b/n.md": "[[shell]] [[SHELL]] [[Shell]] [[Tree]] [[tree]] [[TREE]] [x](../a/tree.md)",
        }
    )
    assert bodies["n"] == (
        "[shell](shell) [SHELL](SHELL) [Shell](shell) [Tree](tree) [tree](tree) [TREE](tree) [x](Tree)"
    )


def test_a_files_name_comes_before_an_alias(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built({"A.md": "---\naliases: [B]\n---\nx", "B.md": "x", "C.md": "[[B]]"})
    assert bodies["C"] == "[B](B)"


def test_files_whose_names_differ_in_how_accents_are_encoded(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built({"\u00e9.md": "one", "e\u0301.md": "two"})  # as synchronising with another system leaves them
    assert set(bodies) == {"\u00e9 (\u00e9.md)", "\u00e9 (\u00e9.md) (2)"}


def test_notes_that_share_a_name_get_their_folder(built) -> None:  # type: ignore[no-untyped-def]
    notes = {
        "Todo.md": "top [[Todo]] [[a/Todo]]",
        "a/Todo.md": "in a [[Todo]] [[../Todo]]",
        "b/c/Todo.md": "in c [[Todo]] [[a/Todo|x]]",
        "b/Other.md": "[[Todo]] [[c/Todo]] [[Todo|here]]",
    }
    bodies = built(notes)
    assert set(bodies) == {"Todo", "a/Todo", "b/c/Todo", "Other"}
    assert bodies["Todo"] == "top [Todo](Todo) [a/Todo](a/Todo)"
    assert bodies["a/Todo"] == "in a [Todo](a/Todo) [../Todo](Todo)"
    assert bodies["b/c/Todo"] == "in c [Todo](b/c/Todo) [x](a/Todo)"
    assert bodies["Other"] == "[Todo](Todo) [c/Todo](b/c/Todo) [here](Todo)"


def test_titles_that_even_their_folder_does_not_tell_apart_get_their_path(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built({"a/x.md": "---\ntitle: T\n---\n1", "a/y.md": "---\ntitle: T\n---\n[[x]]"})
    assert bodies == {"a/T (a/x.md)": "1", "a/T (a/y.md)": "[x](a/T (a/x.md))"}


def test_folders_with_spaces_around_them_tell_notes_apart_too(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built({" a/x.md": "1 [[ a/x]]", "b \n/x.md": "2", "c\n /y.md": "3", "c /y.md": "4 [y](../c%0A%20/y.md)"})
    assert bodies == {
        "a/x": "1 [a/x](a/x)",
        "b /x": "2",
        "c /y (c /y.md)": "3",
        "c /y (c /y.md) (2)": "4 [y](c /y (c /y.md))",
    }


def test_a_heading_that_repeats_a_title_with_its_folder_may_be_all_of_a_note(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built({"a/x.md": "# a/x\n", "b/x.md": "# b/x\n\nmore", "c/x.md": "# x\n"})
    assert bodies == {"a/x": "# a/x", "b/x": "more"}


def test_unicode_forms_of_a_name_are_one(built) -> None:  # type: ignore[no-untyped-def]
    bodies = built({"Cafe\u0301.md": "x", "n.md": "[[Caf\u00e9]] [[CAFE\u0301|y]]"})
    assert bodies["n"] == "[Caf\u00e9](Caf\u00e9) [y](Caf\u00e9)"


# Bodies and titles


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("# My note\n\nbody", "body"),
        ("\n\n  #   my NOTE ##\nbody", "body"),
        ("My note\n=======\n\nbody", "body"),
        ("# Another\n\nbody", "# Another\n\nbody"),
        ("## My note\n\nbody", "## My note\n\nbody"),
        ("body\n\n# My note", "body\n\n# My note"),
        ("#My note", "#My note"),
        ("\ufeff---\ntags: x\n---\n\n# My note\r\n\r\n  body\r\nmore\r\n\r\n", "  body\nmore"),
    ],
)
def test_a_heading_that_repeats_the_title_is_dropped(built, text: str, body: str) -> None:  # type: ignore[no-untyped-def]
    assert built({"My note.md": text}) == {"My note": body}


def test_titles_may_come_from_the_first_heading(built) -> None:  # type: ignore[no-untyped-def]
    notes = {
        "index.md": "# Welcome\n\n[[other]] [x](third.md)",
        "other.md": "---\ntitle: Matter\n---\n# Head\nbody",
        "third.md": "no heading",
    }
    assert built(notes, title_from="heading") == {
        "Welcome": "[other](Matter) [x](third)",
        "Matter": "# Head\nbody",
        "third": "no heading",
    }
    assert "index" in built(notes)


# The folder


def test_titles_are_one_line_without_spaces_around_whatever_spaces_files_have(built) -> None:  # type: ignore[no-untyped-def]
    notes = {
        "a.md": "# One\u00a0\n\nbody [x](b.md)",
        "b.md": "# \u3000Two\u2028parts\x0c\n\nbody",
        "c.md": "Three\u00a0\n=====\n\nbody",
        "d.md": "# \u00a0\n\nbody",
        " .md": "body",
    }
    assert built(notes, title_from="heading") == {
        "One": "body [x](Two parts)",
        "Two parts": "body",
        "Three": "body",
        "d": "# \u00a0\n\nbody",
        ".md": "body",
    }


def test_hidden_and_other_files_are_left_out_and_endings_vary(built) -> None:  # type: ignore[no-untyped-def]
    notes = {
        ".obsidian/x.md": "x",
        ".x.md": "x",
        "a.txt": "x",
        "b.MD": "b",
        "c.markdown": "[[b]]",
        "v1.2.md": "[[c]]",
    }
    assert built(notes) == {"b": "b", "c": "[b](b)", "v1.2": "[c](c)"}


def test_what_is_left_out_is_reported(tmp_path: Path) -> None:
    notes = {
        "a.md": "[[empty]]",
        "empty.md": " \n",
        "title only.md": "# Title only\n",
        "bad.md": "---\na: b: c\n---\nx",
    }
    report = build_corpus(write_notes(tmp_path / "notes", notes), tmp_path / "corpus")
    assert (report.summary.documents, report.summary.unresolved) == (2, 1)
    assert [Path(remark.partition(": ")[0]).name for remark in report.remarks] == [
        "bad.md",
        "empty.md",
        "title only.md",
    ]
    assert "front matter ignored (mapping values are not allowed here" in report.remarks[0]
    assert report.remarks[1].endswith("left out, it is empty")


def test_a_title_that_no_link_can_mean_is_reported(tmp_path: Path) -> None:
    notes = {"#a.md": "x", "b.md": "---\ntitle: https://b.c\n---\n[a](%23a.md)", "std::c.md": "[b](b.md)"}
    write_notes(tmp_path / "notes", notes)
    report = build_corpus(tmp_path / "notes", tmp_path / "corpus")
    assert [remark.partition("notes/")[2] for remark in report.remarks] == [
        "#a.md: no link will lead to it, its title '#a' reads as an address",
        "b.md: no link will lead to it, its title 'https://b.c' reads as an address",
    ]
    assert report.summary.links == 0


def test_a_file_that_is_not_utf8_is_named_or_skipped(tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes", {"a.md": "x"})
    (notes / "latin.md").write_bytes(b"caf\xe9")
    with pytest.raises(CorpusError, match=r"latin\.md: not UTF-8 \(byte 3\); mend it, or leave it out by --skip"):
        build_corpus(notes, tmp_path / "corpus")
    report = build_corpus(notes, tmp_path / "corpus", skip_unreadable=True)
    assert report.summary.documents == 1
    assert "latin.md: not UTF-8" in report.remarks[0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_that_is_not_read_is_named_or_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = write_notes(tmp_path / "notes", {"a.md": "x", "closed/b.md": "y"})
    (notes / "linked").symlink_to(notes)
    scan = os.scandir

    def scandir(path: str | int) -> object:  # what is deleted is scanned by its number
        if isinstance(path, str) and Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(CorpusError, match=r"closed: cannot read it \(Permission denied\); mend it, or leave it out by"):
        build_corpus(notes, tmp_path / "corpus")
    linked, closed = build_corpus(notes, tmp_path / "corpus", skip_unreadable=True).remarks
    assert linked.endswith("linked: left out, it is a link to a folder")
    assert closed.endswith("closed: cannot read it (Permission denied)")


def test_a_file_whose_name_is_not_utf8_is_named_or_skipped(tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes", {"a.md": "x"})
    (notes / os.fsdecode(b"caf\xe9.md")).write_text("y")
    with pytest.raises(CorpusError, match=r"caf\\udce9\.md': its name is not UTF-8; mend it, or leave it out by"):
        build_corpus(notes, tmp_path / "corpus")
    report = build_corpus(notes, tmp_path / "corpus", skip_unreadable=True)
    assert report.summary.documents == 1 and "its name is not UTF-8" in report.remarks[0]


@pytest.mark.skipif(os.name != "posix", reason="no named pipes among files")
def test_a_pipe_among_the_notes_is_not_waited_for(tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes", {"a.md": "x"})
    os.mkfifo(notes / "pipe.md")
    with pytest.raises(CorpusError, match=r"pipe\.md: cannot read it \(not a regular file\)"):
        build_corpus(notes, tmp_path / "corpus")


def test_folders_that_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no folder at"):
        build_corpus(tmp_path / "nowhere", tmp_path / "corpus")
    (tmp_path / "notes").mkdir()
    with pytest.raises(CorpusError, match="no markdown files with text under"):
        build_corpus(tmp_path / "notes", tmp_path / "corpus")
    with pytest.raises(ConfigError, match="title_from must be one of name, heading, got 'h1'"):
        build_corpus(tmp_path / "notes", tmp_path / "corpus", title_from="h1")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_corpus_is_not_written_over_its_source(tmp_path: Path) -> None:
    write_notes(tmp_path, {"a.md": "x", "metadata.json": "{}", "sub/b.md": "y"})
    for source in (tmp_path, tmp_path / "sub"):
        with pytest.raises(CorpusError, match="it holds the source"):
            build_corpus(source, tmp_path, force=True)
    assert (tmp_path / "sub/b.md").read_text() == "y"


def test_the_same_notes_give_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    notes = {f"{'abc'[i % 3]}/n{i // 2}.md": f"# n{i // 2}\n[[n{i % 9}]] [x](../b/n{i % 7}.md) {i}" for i in range(80)}
    write_notes(tmp_path / "notes", notes)
    progress: list[tuple[int, int]] = []
    for name, workers in (("one", 1), ("again", 1), ("two", 2)):
        build_corpus(tmp_path / "notes", tmp_path / name, workers=workers, progress=lambda *done: progress.append(done))
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "again", "two")
    ]
    assert contents[0] == contents[1] == contents[2]
    assert progress == [(i, 80) for i in range(1, 81)] * 3
