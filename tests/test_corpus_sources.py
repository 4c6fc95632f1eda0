"""Corpora of Python trees and LaTeX folders: titles, edges, what is left out, and bibliographies."""

from __future__ import annotations

import ast
import json
import shutil
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ds2ds.cli.main import app
from ds2ds.corpus.build.bibliography import Entry, entry_text, read_bibliography
from ds2ds.corpus.build.folder import build_folder, detect_format
from ds2ds.corpus.build.labels import labelled_parts
from ds2ds.corpus.build.report import BuildReport
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.corpus.search import corpus_tokenizer, document_text
from ds2ds.corpus.statistics import LinkCount, sample_links
from ds2ds.errors import ConfigError, CorpusError

ARTICLE = Path(__file__).parent / "data" / "latex"

TREE = {
    "app.py": "import shop.cart, os\nfrom shop import prices, VERSION",  # no newline at its end
    "shop/__init__.py": '"""Sells things."""\nVERSION = 1\n',
    "shop/cart.py": "from .prices import total\nfrom . import VERSION\nfrom shop.cart import Cart\n",
    "shop/prices.py": "from decimal import Decimal\r\nfrom ..app import main\r\n",
    "shop/empty.py": "\n",
    "shop/__pycache__/cart.py": "no = 1\n",
    ".hidden/x.py": "no = 1\n",
    "env/pyvenv.cfg": "home = /\n",
    "env/lib/site.py": "no = 1\n",
    "data.json": "{}",
    "README.txt": "no",
}


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def build(source: Path, **options: Any) -> tuple[BuildReport, dict[str, str | None], dict[str, list[str]]]:
    """The report, and each document's text and what it links to."""
    out = source.parent / "corpus"
    report = build_folder(source, out, force=True, **options)
    with DocumentCorpus(out) as corpus:
        tokenizer = corpus_tokenizer(corpus)
        titles = list(corpus.titles())
        texts = {title: document_text(corpus, title, tokenizer) for title in titles}
        return report, texts, {title: corpus.graph.outgoing(title) for title in titles}


# Python


def test_a_python_tree(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {**TREE})
    report, texts, links = build(source)
    assert list(texts) == ["app.py", "shop/__init__.py", "shop/cart.py", "shop/prices.py"]
    assert texts["app.py"] == str(TREE["app.py"]) + "\n"
    assert texts["shop/prices.py"] == "from decimal import Decimal\nfrom ..app import main\n"
    assert links == {
        "app.py": ["shop/cart.py", "shop/prices.py", "shop/__init__.py"],
        "shop/__init__.py": [],
        "shop/cart.py": ["shop/prices.py", "shop/__init__.py"],  # and itself, which is no edge
        "shop/prices.py": ["app.py"],
    }
    assert report.remarks == (f"{source / 'shop' / 'empty.py'}: left out, it is empty",)
    # os and decimal are not there; two names of one document are two links.
    assert (report.summary.links, report.summary.unresolved) == (8, 2)
    metadata = json.loads((tmp_path / "corpus" / "metadata.json").read_text())
    assert metadata["link_format"] == "python"
    with DocumentCorpus(tmp_path / "corpus") as corpus:
        assert sample_links(corpus, corpus_tokenizer(corpus), 0) == LinkCount(4, 9, 7)


def test_a_folder_that_is_a_package_gives_its_name_to_titles(tmp_path: Path) -> None:
    files = {"__init__.py": "from .a import x\n", "a.py": "import json_.b\n", "b.py": "from . import a\n"}
    _, _, links = build(write(tmp_path / "json_", files))
    assert links == {"json_/__init__.py": ["json_/a.py"], "json_/a.py": ["json_/b.py"], "json_/b.py": ["json_/a.py"]}
    assert list(build(write(tmp_path / "my-tree", files))[1]) == ["__init__.py", "a.py", "b.py"]


def test_case_tells_files_apart(tmp_path: Path) -> None:
    source = write(
        tmp_path / "src", {"a.py": "import Queue\nfrom b import C\n", "queue.py": "x = 1\n", "b/c.py": "x = 1\n"}
    )
    assert build(source)[2]["a.py"] == []


def test_files_that_are_not_utf8(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"a.py": "x = 1\n", "b.py": b"# \xe9\n"})
    with pytest.raises(CorpusError, match=r"b.py: not UTF-8 \(byte 2\)"):
        build(source)
    report, texts, _ = build(source, skip_unreadable=True)
    assert list(texts) == ["a.py"]
    assert len(report.remarks) == 1 and report.remarks[0].startswith("skipped: ")


def test_paths_and_labels_that_are_no_titles_are_left_out(tmp_path: Path) -> None:
    tree = write(tmp_path / "tree", {"a.py": "import b\n", " b.py": "x = 1\n", "c\nd.py": "x = 1\n"})
    report, texts, _ = build(tree)
    assert set(texts) == {"a.py"} and len(report.remarks) == 2
    assert all("is no title" in remark and "\n" not in remark for remark in report.remarks)
    thesis = write(tmp_path / "thesis", {"a.tex": "\\section{A}\\label{ }\\label{s}\nText\n", " b.tex": "Text\n"})
    assert set(build(thesis, format="latex+ref")[1]) == {"a.tex", "s"}


def test_workers_give_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {**TREE})
    for workers in (1, 2):
        build_folder(source, tmp_path / f"c{workers}", workers=workers)
    names = sorted(path.name for path in (tmp_path / "c1").iterdir() if path.suffix != ".sqlite")
    for name in names:
        assert (tmp_path / "c1" / name).read_bytes() == (tmp_path / "c2" / name).read_bytes()


def imported_files(file: Path, root: Path) -> set[str]:
    """The files of the tree that a file's imports name, found by `ast` and by looking on the disk as Python does."""

    def module(parts: list[str]) -> Path | None:
        package, plain = root.joinpath(*parts, "__init__.py"), root.joinpath(*parts).with_suffix(".py")
        return package if package.is_file() else plain if parts and plain.is_file() else None

    found: set[Path | None] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {module(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = list(file.relative_to(root).parts[: -node.level]) if node.level else []
            parts += node.module.split(".") if node.module else []
            found |= {module([*parts, alias.name]) or module(parts) for alias in node.names if alias.name != "*"}
            found |= {module(parts) for alias in node.names if alias.name == "*"}
    return {path.relative_to(root).as_posix() for path in found if path is not None and path != file}


def test_edges_of_the_standard_library_are_what_ast_and_the_disk_say(tmp_path: Path) -> None:
    root, edges = tmp_path / "src", 0
    for package in ("json", "email", "asyncio", "xml"):
        shutil.copytree(Path(sysconfig.get_path("stdlib")) / package, root / package)
    build_folder(root, tmp_path / "corpus", search=False)
    with DocumentCorpus(tmp_path / "corpus") as corpus:
        for title in corpus.titles():
            expected = {
                name for name in imported_files(root / title, root) if (root / name).read_text().strip()
            }  # empty files are no documents
            assert set(corpus.graph.outgoing(title)) == expected, title
            edges += len(expected)
    assert edges > 150


# LaTeX


def test_a_latex_folder(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    report = build_folder(ARTICLE, out)
    with DocumentCorpus(out) as corpus:
        assert corpus.metadata.link_format == "latex"
        links = {title: corpus.graph.outgoing(title) for title in corpus.titles()}
        text = document_text(corpus, "vaswani2017", corpus_tokenizer(corpus))
    assert links == {
        "macros.tex": [],
        "main.tex": ["macros.tex", "knuth1984", "lamport1994", "sections/introduction.tex", "sections/method.tex",
                     "vaswani2017", "su2021"],
        "sections/introduction.tex": ["vaswani2017", "su2021", "knuth1984", "lamport1994", "sections/notation.tex"],
        "sections/method.tex": ["su2021", "vaswani2017", "sections/notation.tex"],
        "sections/notation.tex": ["knuth1984"],
        "lamport1994": [], "knuth1984": [], "vaswani2017": [], "su2021": [],
    }  # fmt: skip
    assert report.summary.unresolved == 1  # missing2020
    assert text == (
        "Attention is all you need\n\nVaswani, Ashish, Shazeer, Noam, others. Advances in Neural Information "
        "Processing Systems, 2017.\n\n"
        "The dominant sequence transduction models are based on complex recurrent or convolutional "
        "networks.\n"
    )


def test_labels_are_documents_if_asked_for(tmp_path: Path) -> None:
    report = build_folder(ARTICLE, tmp_path / "corpus", format="latex+ref")
    with DocumentCorpus(tmp_path / "corpus") as corpus:
        assert corpus.metadata.link_format == "latex+ref"
        main, method = corpus.graph.outgoing("main.tex"), corpus.graph.outgoing("sections/method.tex")
        text = document_text(corpus, "fig:graph", corpus_tokenizer(corpus))
        assert corpus.graph.outgoing("fig:graph") == ["lamport1994"]
    assert {"sec:related", "fig:graph"} <= set(main) and "eq:score" in method
    assert text is not None and text.startswith("\\begin{figure}") and text.endswith("\\end{figure}\n")
    assert (report.summary.documents, report.summary.unresolved) == (14, 2)  # missing2020, by a file and its section
    twice = write(
        tmp_path / "twice", {"a.tex": r"\section{x}\label{a.tex}\label{l}y", "b.tex": r"\section{z}\label{l}"}
    )
    report, texts, _ = build(twice, format="latex+ref")
    assert texts["l"] == "\\section{x}\\label{a.tex}\\label{l}y\n"
    assert [remark.partition(": ")[2] for remark in report.remarks] == [
        "label a.tex left out, there is another",
        "label l left out, there is another",
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\section{A}\label{a} x \subsection*{B}\label{b} y \section{C} z", [("b", r"\subsection*{B}\label{b} y"),
         ("a", r"\section{A}\label{a} x \subsection*{B}\label{b} y")]),
        (r"\section{A}\begin{f}\label{f}\begin{g}\label{g}\end{g}\end{f}", [("g", r"\begin{g}\label{g}\end{g}"),
         ("f", r"\begin{f}\label{f}\begin{g}\label{g}\end{g}\end{f}")]),
        ("\\section{A} % \\label{no}\n\\begin{verbatim}\\label{no}\\end{verbatim}\\label{a}50\\% \\label{b}", [
         (label, "\\section{A} % \\label{no}\n\\begin{verbatim}\\label{no}\\end{verbatim}\\label{a}50\\% \\label{b}")
         for label in "ab"]),
        (r"\begin{document}\label{no}\section{A}\label{a}\end{document} junk", [("a", r"\section{A}\label{a}")]),
        (r"\section{A}\end{x}\begin{y}\label{y}", [("y", r"\begin{y}\label{y}")]),
        (r"\sectionmark{A}\label{no}\labels{no}", []),
    ],
)  # fmt: skip
def test_what_labels_stand_for(source: str, expected: list[tuple[str, str]]) -> None:
    assert list(labelled_parts(source)) == expected


def test_entries_with_one_key_are_one_document(tmp_path: Path) -> None:
    source = write(
        tmp_path / "paper",
        {"a.bib": "@misc{k, title={One}}\n@misc{empty}\n", "b.bib": "@misc{k, title={Two}}", "m.tex": r"\cite{k}"},
    )
    report, texts, links = build(source)
    assert texts["k"] == "One\n" and links["m.tex"] == ["k"]
    assert report.remarks == (
        f"{source / 'a.bib'}: entry empty left out, it has no fields",
        f"{source / 'b.bib'}: entry k left out, there is another",
    )
    write(source, {"c.bib": b"@misc{\xe9}"})
    with pytest.raises(CorpusError, match=r"c.bib: not UTF-8"):
        build(source)
    assert build(source, skip_unreadable=True)[0].remarks[-1].startswith("skipped: ")


# Bibliographies


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@article{k, title = {A {B} c}, year=2000}", [Entry("k", "article", {"title": "A {B} c", "year": "2000"})]),
        (
            '@Book(k, title = "A {"} b", note = "x\\"{o}y")',
            [Entry("k", "book", {"title": 'A {"} b', "note": 'x\\"{o}y'})],
        ),
        (
            '@string{a = "x"} @string(b = {y}) @misc{k, t = a # " and " # b # {z}}',
            [Entry("k", "misc", {"t": "x and yz"})],
        ),
        ("@misc{k, title={a\n   b},}", [Entry("k", "misc", {"title": "a b"})]),
        ("text @misc{k, Title={a}, title={b}} more", [Entry("k", "misc", {"title": "a"})]),
        ("@comment{@misc{no, t={a}}} @preamble{ {x} # {y} } @misc{k}", [Entry("k", "misc", {})]),
        ("@misc{k:1/x+y, a=1}@misc{é, b=2}", [Entry("k:1/x+y", "misc", {"a": "1"}), Entry("é", "misc", {"b": "2"})]),
        ("@misc{k, a={open\n@misc{l, b={c}}", [Entry("k", "misc", {}), Entry("l", "misc", {"b": "c"})]),
        ("@misc{k, a=, b={c}} @misc{", [Entry("k", "misc", {})]),
        ("me@example.org {x}", []),
    ],
)
def test_bibliographies(source: str, expected: list[Entry]) -> None:
    assert list(read_bibliography(source)) == expected


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"title": "{T}he {\\LaTeX} book", "author": "A. B and C", "year": "1994"},
            "The \\LaTeX book\n\nA. B, C. 1994.\n",
        ),
        ({"title": "T", "journal": "J"}, "T\n\nJ.\n"),
        ({"title": "T", "abstract": "About \\{x\\}."}, "T\n\nAbout \\{x\\}.\n"),
        ({"note": "n", "url": "u"}, "note: n\nurl: u\n"),
        ({}, ""),
    ],
)
def test_the_text_of_a_work(fields: dict[str, str], text: str) -> None:
    assert entry_text(Entry("k", "misc", fields)) == text


@settings(deadline=None, max_examples=200)
@given(st.text('@misc{k,a="#} \n\\()string1', max_size=60))
def test_a_damaged_bibliography_is_read_as_far_as_it_goes(source: str) -> None:
    whole = "@misc{last, title={x}}"
    entries = list(read_bibliography(source + "\n"))
    assert all(entry.key for entry in entries)
    assert next(read_bibliography(whole + source)) == Entry("last", "misc", {"title": "x"})


@pytest.mark.parametrize("entry", ["@misc{k, a={open\n", '@misc{k, a="{open\n', "@comment{open\n"])
def test_entries_that_never_end_are_read_in_one_pass(entry: str) -> None:
    began = time.perf_counter()
    list(read_bibliography(entry * 20_000))
    assert time.perf_counter() - began < 5  # minutes where each looks through all that follow
    assert [one.key for one in read_bibliography(entry * 3 + "@misc{last}")][-1] == "last"


# What a folder holds


def test_the_kind_of_a_folder(tmp_path: Path) -> None:
    for number, (files, expected) in enumerate(
        [
            (["a.md"], "markdown"),
            (["a.py", "x.png"], "python"),
            (["a.tex", "a.bib"], "latex"),
            ([f"{i}.py" for i in range(10)] + ["README.md"], "python"),
            ([f"{i}.markdown" for i in range(20)] + ["x.py", "y.tex"], "markdown"),
        ]
    ):
        folder = write(tmp_path / str(number), dict.fromkeys(files, "x"))
        assert detect_format(folder) == expected
    mixed = write(tmp_path / "mixed", dict.fromkeys(["a.md", "b.py", "c.py", "d.tex"], "x = 1"))
    with pytest.raises(CorpusError, match=r"several kinds \(2 python, 1 markdown, 1 latex\): say which by --format"):
        detect_format(mixed)
    assert list(build(mixed, format="python")[1]) == ["b.py", "c.py"]
    assert list(build(mixed, format="markdown")[1]) == ["a"]
    with pytest.raises(
        CorpusError, match=r"no markdown, Python or LaTeX files under .* \(\*\.md, \*\.markdown, \*\.py, "
    ):
        detect_format(write(tmp_path / "none", {"a.txt": "x"}))


def test_wrong_arguments(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"a.py": "\n"})
    with pytest.raises(
        ConfigError, match=r"format must be one of auto, markdown, python, latex, latex\+ref, got 'html'"
    ):
        build_folder(source, tmp_path / "out", format="html")
    with pytest.raises(ConfigError, match="title_from is for markdown: python files are titled by their paths"):
        build_folder(source, tmp_path / "out", title_from="heading")
    with pytest.raises(CorpusError, match=r"no python files with text under .*\.py"):
        build_folder(source, tmp_path / "out")
    with pytest.raises(CorpusError, match="it holds the source"):
        build_folder(source, tmp_path)
    with pytest.raises(CorpusError, match="no folder at"):
        build_folder(tmp_path / "nowhere", tmp_path / "out")


def test_metadata_must_name_the_format(tmp_path: Path) -> None:
    build(write(tmp_path / "src", {"a.py": "x = 1\n"}), search=False)
    file = tmp_path / "corpus" / "metadata.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps({**fields, "link_format": 3}))
    with pytest.raises(CorpusError, match="link_format must be a string, got 3"):
        DocumentCorpus(tmp_path / "corpus")
    file.write_text(json.dumps({**fields, "link_format": "html"}))
    with DocumentCorpus(tmp_path / "corpus") as corpus, pytest.raises(ConfigError, match="no link format 'html'"):
        sample_links(corpus, corpus_tokenizer(corpus), 0)


# The command


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "src", {**TREE})
    corpus = str(tmp_path / "corpus")
    run = CliRunner()
    built = run.invoke(app, ["corpus", "build", str(source), corpus])
    assert built.exit_code == 0, built.output
    assert "4 documents" in built.stdout and "8 links (2 of them to documents that do not exist)" in built.stdout
    shown = run.invoke(app, ["corpus", "info", corpus]).stdout
    assert "format     python" in shown and "77.78% of 9 links in 4 documents" in shown
    shown = run.invoke(app, ["corpus", "show", "shop/cart.py", "-c", corpus]).stdout
    assert "from .prices import total" in shown and "Links to: shop/prices.py, shop/__init__.py" in shown
    assert run.invoke(app, ["corpus", "search", "sells", "-c", corpus]).stdout.startswith("shop/__init__.py")
    refused = run.invoke(app, ["corpus", "build", str(source), corpus, "--force", "--format", "latex"])
    assert refused.exit_code != 0 and "no latex files with text" in str(refused.exception) + refused.output
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    coloured = run.invoke(app, ["corpus", "show", "shop/__init__.py", "-c", corpus]).stdout
    assert "VERSION" in coloured and "\x1b[" in coloured and "__init__" in coloured
