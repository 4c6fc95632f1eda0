"""examples/foldoc: from Debian's dictionary to linked markdown, on small entries and on what is packaged."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.link_scanner import LinkScanner
from ds2ds.tokenizer import as_tokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "foldoc"))

import convert as foldoc  # noqa: E402
import typer  # noqa: E402
from dictd import INDEX_NAME, TEXT_NAME, Entry, SourceError, read_entries  # noqa: E402
from entry_markdown import Link, entry_pieces, paragraphs, sole_reference  # noqa: E402
from link_syntax import destination, escape_plain, render  # noqa: E402
from references import NameIndex  # noqa: E402

LINKS = ROOT / "tests" / "data" / "foldoc_links.jsonl.gz"
CORPUS = ROOT / "runtime" / "data" / "foldoc"


def scanned(body: str) -> list[tuple[int, str]]:
    return [(link.end, link.target) for link in LinkScanner().feed(body.encode())]


def converted(**entries: str) -> dict[str, str]:
    """Bodies by title; a headword's underscores stand for spaces, two of them for the next headword."""
    made = [Entry(tuple(n.replace("_", " ") for n in names.split("__")), t) for names, t in entries.items()]
    return {document.title: document.body for document in foldoc.convert(made).documents}


def body_of(text: str, *titles: str) -> str:
    return render(entry_pieces(text, NameIndex([(title, title) for title in titles]).resolve))[0]


# The dictd database


def number(value: int) -> str:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text = digits[value % 64]
    while value := value // 64:
        text = digits[value % 64] + text
    return text


def database(records: list[tuple[list[str], str]]) -> tuple[bytes, bytes]:
    """foldoc.dict.dz and foldoc.index of (index names, text) records."""
    text, lines = b"", []
    for names, record in records:
        data = record.encode()
        lines += [f"{name}\t{number(len(text))}\t{number(len(data))}" for name in names]
        text += data
    return gzip.compress(text), "\n".join(sorted(lines)).encode() + b"\n"


RECORDS = [
    (["00-database-short"], "00-database-short\n     The dictionary\n"),
    (["ansi c", "c (ansi)"], "\n\nANSI C\nC (ANSI)\n\n   A {standard}.\n\n   (1995-01-20)\n\n"),
    (["µcurse"], "µCurse\n\n   A language" + " of its kind" * 500 + ".\n"),
    (["dictionary.debian"], "Dictionary.debian  \n\n  Copyright by others.\n"),
    (["orphan"], "orphan\n\n       <Debian> A package.\n"),
]


def folder_with(path: Path, text: bytes, index: bytes) -> Path:
    (path / TEXT_NAME).write_bytes(text)
    (path / INDEX_NAME).write_bytes(index)
    return path


def test_reads_entries_and_leaves_out_what_is_not_foldoc(tmp_path: Path) -> None:
    entries = read_entries(folder_with(tmp_path, *database(RECORDS)))
    assert [entry.headwords for entry in entries] == [("ANSI C", "C (ANSI)"), ("µCurse",)]
    assert entries[0].text.startswith("   A {standard}.")
    assert entries[1].text.endswith("of its kind.\n")


def test_a_deb_holds_the_same_entries_as_a_folder(tmp_path: Path) -> None:
    text, index = database(RECORDS)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in ((TEXT_NAME, text), (INDEX_NAME, index)):
            member = tarfile.TarInfo(f"./usr/share/dictd/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    deb = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", data.getvalue())):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        deb += header.encode() + content + b"\n" * (len(content) % 2)
    (tmp_path / "dict.deb").write_bytes(deb)
    assert read_entries(tmp_path / "dict.deb") == read_entries(folder_with(tmp_path, text, index))


def test_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no foldoc\.dict\.dz"):
        read_entries(tmp_path)
    (tmp_path / "not.deb").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"not\.deb: not a \.deb"):
        read_entries(tmp_path / "not.deb")
    with pytest.raises(SourceError, match="line 1: 9 bytes at 0 lie beyond the text's 3"):
        read_entries(folder_with(tmp_path, gzip.compress(b"abc"), b"a\tA\tJ\n"))
    with pytest.raises(SourceError, match="line 1: expected 3 tab-separated fields, got 2"):
        read_entries(folder_with(tmp_path, gzip.compress(b"abc"), b"a\tA\n"))


# Which document a reference means


@pytest.mark.parametrize(
    ("reference", "title"),
    [
        ("Alpha", "Alpha"),
        ("ALPHA", "ALPHA"),
        ("aLPHA", "ALPHA"),  # the nearer of the two
        ("operating systems", "operating system"),
        ("Operating Systems", "operating system"),
        ("libraries", "library"),
        ("matrices", "matrix"),
        ("boxes", "box"),
        ("PCs", "PC"),
        ("method", "method"),
        ("methods", "method"),  # not the product "Methods"
        ("compile time", "compile-time"),
        ("web-sites", "website"),
        ("Novell", "Novell, Inc."),
        ("Intel Corporation", "Intel"),
        ("GNU Hurd", "Hurd"),  # another headword
        ("assets", None),  # no plural of ASSET
        ("c-", None),
        ("Quantum Corporation", None),  # not the word
        ("class", None),
    ],
)
def test_references_resolve(reference: str, title: str | None) -> None:
    titles = "Alpha ALPHA library matrix box PC method Methods compile-time website Intel Hurd ASSET C quantum"
    names = [(title, title) for title in [*titles.split(), "clas", "operating system", "Novell, Inc."]]
    assert NameIndex([*names, ("GNU Hurd", "Hurd")]).resolve(reference) == title


def test_redirects_are_folded_through_chains() -> None:
    bodies = converted(
        LAN="   <networking> {Local network}.\n",
        Local_network="   See {local area network}.\n",
        local_area_network__ln="   A {network}.\n",
        WWW="   {World-Wide Web}\n",
        loop="   {loop}\n",
        ping="   {pong}\n",
        pong="   {ping}\n",
        user="   Uses a {LAN}, an {ln} and {ping}.\n",
    )
    assert "LAN" not in bodies and "Local network" not in bodies
    assert bodies["WWW"] == "World-Wide Web"  # leads nowhere, so it stays
    assert bodies["loop"] == "loop"
    assert bodies["ping"] == "[pong](pong)"
    assert bodies["user"] == "Uses a [LAN](local area network), an [ln](local area network) and [ping](ping)."


def test_entries_with_one_title_become_one_document() -> None:
    entries = [
        Entry(("C",), "   A language.\n"),
        Entry(("C", "sea"), "   See {b}.\n"),
        Entry(("b",), "   {sea} x"),
    ]
    documents = foldoc.convert(entries).documents
    assert [(d.title, d.body) for d in documents] == [
        ("C", "A language.\n\nSee [b](b)."),
        ("b", "[sea](C) x"),
    ]


def test_unresolved_names_are_counted_by_document() -> None:
    entries = [
        Entry(("a",), "   {x} {x} {y} {news:a.b} {the (z)}"),
        Entry(("b",), "   {x} {home (http://c.d/)} {a}"),
    ]
    assert foldoc.convert(entries).unresolved == {"x": 2, "y": 1, "z": 1}


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("   {X Y}\n\n   (1995-01-20)\n", "X Y"),
        ("   <language,\n   tool> {X}.\n", "X"),
        ('   See "{X}".\n', "X"),
        ("   A {X}.\n", None),
        ("   {X}, {Y}.\n", None),
    ],
)
def test_sole_reference(text: str, reference: str | None) -> None:
    assert sole_reference(text) == reference


# An entry's text


def test_paragraphs_are_unfolded_and_dates_dropped() -> None:
    text = "   1. <tool> One  thing\n   and\tmore.\n\n   (1995-01-20)\n\n"
    text += "   2. Other,\n      still.\n\n   (1996-1-2)\n"
    assert body_of(text) == "1. <tool> One thing and more.\n\n2. Other, still."


def test_lines_broken_by_packaging_are_mended() -> None:
    assert body_of("   A very long\nline here\n   ends.\n") == "A very long line here ends."
    assert body_of("   See {home\n   \n(http://x.org/long)}.\n") == "See home (http://x.org/long)."
    assert body_of("    x = 1 and\ny\n    z\n") == "    x = 1 and y\n    z"


def test_indented_text_keeps_its_lines() -> None:
    text = "   In C:\n\n    if (a) {\n      b[i](c);\n    }\n   as in\n    0\tx\n   12\ty\n"
    assert body_of(text, "a") == "In C:\n\n    if (a) {\n      b[i\\](c);\n    }\n\nas in\n\n    0      x\n\n12 y"


def test_indented_references_become_a_list() -> None:
    assert body_of("    {RFC 1157} - SNMP\n      once\n    other\n", "RFC 1157") == (
        "- [RFC 1157](RFC 1157) - SNMP\n  once\n- other"
    )


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("{cache\n   line}s", "[cache line](cache line)s"),
        ("{loops (loop)}", "[loops](loop)"),
        ("{loop (fish)}", "loop (fish)"),
        ("{(http://a.b/)}", "(http://a.b/)"),
        ("{home (http://a.b/c(d))}", "home (http://a.b/c(d))"),
        ("{about (about.html)}", "about"),
        ("{C (ANSI)}", "[C (ANSI)](<C (ANSI)>)"),
        ("{unknown}", "unknown"),
        ("{ x in S } and {} and {..}", "{ x in S } and {} and {..}"),
        ("[{loop} 1]. {loop}(s)", "[[loop](loop) 1]. [loop](loop)(s)"),
        ("not!{loop} \\{loop}", "not\\![loop](loop) \\{loop}"),
        ("a\\ {loop} `b", "a\\ [loop](loop) \\`b"),
        ("{[x]} {\\perp} {:-)}", "[\\[x\\]]([x]) [\\\\perp](<\\\\perp>) [:-)](<:-)>)"),
    ],
)
def test_references_in_prose(text: str, body: str) -> None:
    assert body_of("   " + text, "cache line", "loop", "C (ANSI)", "[x]", "\\perp", ":-)") == body


def test_paragraphs_do_not_split_at_a_wrapped_address() -> None:
    assert len(paragraphs("   A\n\n   \n{(http://x)}.\n\n   B\n")) == 3


# Links read back


HARD = st.text(st.sampled_from("ab [](){}<>!\\`\"'&;#3é*_"), max_size=12)
NAMES = HARD.map(lambda text: " ".join(text.split())).filter(bool)


@given(st.lists(st.one_of(HARD, st.builds(Link, NAMES, NAMES)), max_size=8))
def test_a_reader_finds_exactly_the_recorded_links(parts: list[str | Link]) -> None:
    pieces: list[str | Link] = []
    for part in parts:
        if isinstance(part, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += part
        elif part:
            pieces.append(part)
    body, links = render(pieces)
    assert [target for _, target in links] == [piece.target for piece in pieces if isinstance(piece, Link)]
    assert scanned(body) == links


def test_what_cannot_be_misread_is_not_escaped() -> None:
    plain = "a [b] (c) d! \\e {f} <g> \\"
    assert escape_plain(plain, before_link=False) == plain
    assert destination("Smith's C++ (x)[y]!") == "<Smith's C++ (x)[y]!>"
    assert destination("f(x), [y] & z") == "f(x), [y] & z"


# The command, and what is packaged


def test_command_writes_corpus_notice_links_and_markdown(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    records = [*RECORDS[:2], (["standard"], "standard\n\n   What {C (ANSI)} is.\n")]
    folder_with(source, *database(records))
    app = typer.Typer()
    app.command()(foldoc.main)
    arguments = [str(source), str(tmp_path / "out"), "--links", str(tmp_path / "l.gz")]
    result = CliRunner().invoke(app, [*arguments, "--markdown", str(tmp_path / "md")])
    assert result.exit_code == 0, result.output
    assert "documents           2" in result.output and "links               2" in result.output
    assert "Denis Howe" in (tmp_path / "out" / "COPYING.md").read_text()
    assert foldoc.load_links(tmp_path / "l.gz") == {
        "ANSI C": [(22, "standard")],
        "standard": [(23, "ANSI C")],
    }
    texts = sorted(path.read_text() for path in (tmp_path / "md").iterdir())
    assert texts == ["# ANSI C\n\nA [standard](standard).\n", "# standard\n\nWhat [C (ANSI)](ANSI C) is.\n"]

    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "--force" in CliRunner().invoke(app, arguments).output
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first

    bad = CliRunner().invoke(app, [str(tmp_path / "md"), str(tmp_path / "none")])
    assert bad.exit_code == 1 and "no foldoc.dict.dz" in bad.output


def test_packaged_corpus_and_record_of_links_agree() -> None:
    links = foldoc.load_links(LINKS)
    assert len(links) >= 11_800
    assert sum(map(len, links.values())) >= 48_000
    assert {target for found in links.values() for _, target in found} <= links.keys()
    assert not any(target == title for title, found in links.items() for _, target in found)

    tokenizer, tokens = as_tokenizer(), 0
    with DocumentCorpus(CORPUS) as corpus:
        assert set(corpus.titles()) == links.keys()
        for title, found in links.items():
            body = corpus.get_document(title)
            assert body is not None
            tokens += len(body)
            assert scanned(tokenizer.decode(np.asarray(body).tolist())) == found, title
    assert 1_400_000 < tokens < 1_600_000


def test_packaged_data_has_foldocs_notice_and_nothing_of_debians() -> None:
    notice = (CORPUS / "COPYING.md").read_text()
    assert "Copyright 1985 by Denis Howe" in notice and "no Invariant Sections" in notice
    assert "Version 1.3, 3 November 2008" in (CORPUS / "GFDL-1.3.txt").read_text()
    titles = {json.loads(line)["raw_identifier"] for line in (CORPUS / "tokenized_graph.jsonl").open()}
    assert "GNU Free Documentation License" in titles
    assert not titles & {"Dictionary.debian", "developer", "orphan", "CMMI"}
