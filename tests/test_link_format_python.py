"""Python imports: the statements, their candidates, and Python's own parser over real files."""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.documents.link_formats import link_format
from ds2ds.documents.link_formats.python_imports import _LONGEST_STATEMENT, _ImportScanner
from ds2ds.documents.link_scanner import ScannedLink

PYTHON = link_format("python")
STDLIB = Path(sysconfig.get_path("stdlib"))


def scan(source: str | bytes, title: str = "p/q/m.py") -> list[ScannedLink]:
    return PYTHON.scanner(title).feed(source.encode() if isinstance(source, str) else source)


def in_pieces(source: bytes, cuts: list[int], title: str = "p/q/m.py") -> list[ScannedLink]:
    scanner = PYTHON.scanner(title)
    ends = sorted({cut % (len(source) + 1) for cut in cuts} | {len(source)})
    return [link for start, end in zip([0, *ends], ends, strict=False) for link in scanner.feed(source[start:end])]


def texts(source: str, title: str = "p/q/m.py") -> list[str]:
    return [link.text for link in scan(source, title)]


# Titles


@pytest.mark.parametrize(
    ("statement", "target", "candidates"),
    [
        ("import a", "a.py", ["a/__init__.py", "a.py"]),
        ("import a.b", "a/b.py", ["a/b/__init__.py", "a/b.py"]),
        ("from a.b import c", "a/b.py", ["a/b/c/__init__.py", "a/b/c.py", "a/b/__init__.py", "a/b.py"]),
        ("from a import *", "a.py", ["a/__init__.py", "a.py"]),
        ("from . import c", "p/q/c.py", ["p/q/c/__init__.py", "p/q/c.py", "p/q/__init__.py"]),
        ("from .. import c", "p/c.py", ["p/c/__init__.py", "p/c.py", "p/__init__.py"]),
        ("from ... import c", "c.py", ["c/__init__.py", "c.py", "__init__.py"]),
        ("from . import *", "p/q/__init__.py", ["p/q/__init__.py"]),
        ("from ... import *", "__init__.py", ["__init__.py"]),
        ("from .a import c", "p/q/a.py", ["p/q/a/c/__init__.py", "p/q/a/c.py", "p/q/a/__init__.py", "p/q/a.py"]),
        ("from ..a import *", "p/a.py", ["p/a/__init__.py", "p/a.py"]),
        ("from ...a import *", "a.py", ["a/__init__.py", "a.py"]),
    ],
)
def test_titles(statement: str, target: str, candidates: list[str]) -> None:
    (link,) = scan(statement + "\n")
    assert (link.target, list(link.candidates)) == (target, candidates)
    assert link.target in link.candidates
    # A tree among others: its imports stay within it.
    (link,) = scan(statement + "\n", "owner/repo:p/q/m.py")
    assert (link.target, list(link.candidates)) == (f"owner/repo:{target}", [f"owner/repo:{c}" for c in candidates])


def test_a_relative_import_that_leads_out_of_the_tree_is_no_link() -> None:
    assert scan("from .... import c\nfrom ....a import c\n") == []
    assert scan("from .. import c\n", "m.py") == []
    assert [link.target for link in scan("from . import c\n", "m.py")] == ["c.py"]
    assert [link.target for link in scan("from . import c\n", "")] == ["c.py"]


def test_a_package_is_where_its_init_is() -> None:
    assert [link.target for link in scan("from . import c\nfrom .d import e\n", "p/__init__.py")] == [
        "p/c.py",
        "p/d.py",
    ]


def test_the_first_candidate_that_exists_is_meant() -> None:
    (link,) = scan("from a.b import c\n")
    assert link.choose({"a/b.py", "a/b/__init__.py"}.__contains__) == "a/b/__init__.py"
    assert link.choose({"a/b.py", "a/b/c.py"}.__contains__) == "a/b/c.py"
    assert link.choose(lambda title: False) == "a/b.py"


# Statements


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a, b.c as d,e\n", ["a", "b.c", "e"]),
        ("from a import b, c as d\n", ["a.b", "a.c"]),
        ("from a import (b,\n    c,  # why\n)\n", ["a.b", "a.c"]),
        ("from a import(b)\n", ["a.b"]),
        ("from.a import b\n", [".a.b"]),
        ("from . a . b import c\n", [".a.b.c"]),
        ("from .import b\n", [".b"]),
        ("from . . import b\n", ["..b"]),
        ("from ...import b\n", ["...b"]),
        ("from a import*\n", ["a.*"]),
        ("import \\\n  a\\\n.b\n", ["a.b"]),
        ("from a \\\r\n import b\r\n", ["a.b"]),
        ("\timport\ta\n", ["a"]),
        ("import a; import b;from c import d\n", ["a", "b", "c.d"]),
        ("if x: import a\nelse:import b\n", ["a", "b"]),
        ("def f():\n    import a\n", ["a"]),
        ("if TYPE_CHECKING:\n    from a import b\n", ["a.b"]),
        ("import a # why\n", ["a"]),
        ("x = (1,\nimport a\n", ["a"]),  # an open bracket hides nothing
        ("import é.日\n", ["é.日"]),
        ("import ﬁ\n", ["fi"]),  # Python reads names in NFKC
        ("from __future__ import annotations\nfrom .__future__ import a\n", [".__future__.a"]),
        ("raise E from e; import a\n", ["a"]),
        ("(yield\nfrom a)\nimport b\n", ["b"]),
        ("from_a = 1\nimporter = 2\nimport_ (a)\n", []),
        ("x.import_a\nimport1\n", []),
        ("from a importb\nfroma import b\nfrom aimport b\nimporta\n", []),
        ("import a b\nimport a.\nimport .a\nimport a,\nimport\nfrom a\nfrom import b\n", []),
        ("from a import\nfrom a import (\n)\nfrom a import b,\nfrom a import b.c\nfrom a import (*)\n", []),
        ("import if\nfrom a import None\nimport a as in\nfrom import import import\n", []),
        ("from the beginning on, import duties rose\n", []),
        ("# import a\nx = 1 # import b\n", []),
        ('"""\nimport a\n"""\n', []),
        ("'''\nimport a\n'''\n", []),
        ("x = 'it''s \\\nimport a\n'\n", []),
        ("x = 'it\\'s; import a'\n", []),
        ("x = f'''{y}\nimport a\n'''\n", []),
        ("x = r'\\'\nimport a\n", ["a"]),
        ("x = rb'''\\'''\nimport a\n'''\n", []),
        ("x = ''\nimport a\nx = ''''''\nimport b\n", ["a", "b"]),
        ("x = '''a'b''c''d'''\nimport b\n", ["b"]),
        ("x = '''\\''''\nimport a\n", ["a"]),
        ("x = 'never closed\nimport a\n", ["a"]),
        ("import a", []),  # not complete yet
        ("from a import (b", []),
        ("from a import (b)", ["a.b"]),
        ("from a import (b\n\ndef f(): import c\n", ["c"]),  # no statement, and over where that is plain
    ],
)
def test_statements(source: str, expected: list[str]) -> None:
    assert texts(source) == expected


@pytest.mark.parametrize(
    ("source", "complete"),
    [
        ("import a\nx", "import a\n"),
        ("import a; x", "import a;"),
        ("import a  # x", "import a  #"),
        ("from a import (b, c) \nx", "from a import (b, c)"),
        ("from a import (\n  b,\n) \nx", "from a import (\n  b,\n)"),
    ],
)
def test_a_statement_fires_where_it_is_complete(source: str, complete: str) -> None:
    scanner = PYTHON.scanner("m.py")
    fired = [source[: at + 1] for at in range(len(source)) if scanner.feed(source[at : at + 1].encode())]
    assert fired == [complete]
    assert all(link.end == len(complete) for link in scan(source))
    assert all(link.start == link.middle == 0 for link in scan(source))


def test_a_documents_end_completes_nothing_and_is_where_the_next_one_starts() -> None:
    scanner = PYTHON.scanner("m.py")
    for opened in (b"import a", b"x = '''", b"x = (", b"# ", b"from a import (b", b"imp", b"x = '\\"):
        assert scanner.feed(opened) == []
        scanner.reset()
        start = scanner.position
        (link,) = scanner.feed(b"import b\n")
        assert (link.text, link.start, link.end) == ("b", start, start + 9)


COUNT = _LONGEST_STATEMENT // 13


def test_a_statement_has_a_longest_length() -> None:
    names = ", ".join(f"name{i:06d}" for i in range(COUNT))
    assert len(texts(f"from a import ({names})\n")) == COUNT
    scanner = _ImportScanner("m.py")
    for _ in range(3 * _LONGEST_STATEMENT // 100):
        scanner.feed(b"from a import (" if scanner.position == 0 else b"name, " * 20)
        assert len(scanner._statement) <= _LONGEST_STATEMENT + 200
    assert [link.text for link in scanner.feed(b"\nimport b\n")] == ["b"]


# Against Python's parser


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each name imported, and the line in which its statement ends, in the order of the source."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        before = ""
        if isinstance(node, ast.ImportFrom):
            if node.module == "__future__" and not node.level:
                continue
            before = "." * node.level + (f"{node.module}." if node.module else "")
        for alias in node.names:
            yield before + alias.name, node.end_lineno or 0


def line_of_last_name(data: bytes, end: int) -> int:
    """The line that Python takes for a statement's last: without what comes before the mark that completes it."""
    statement = data[:end] if data[end - 1 : end] == b")" else data[: end - 1].rstrip(b" \t\f\\\n")
    return statement.count(b"\n") + 1


def agrees_with_ast(source: str) -> int:
    """Fail unless the scanner reads the imports that `ast` reads; how many there are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = list(imports_of(ast.parse(source)))
    data = source.encode()
    # In pieces like tokens, drawn from the text itself, so that a failure repeats.
    random_ = random.Random(len(data))
    cuts = [0]
    while cuts[-1] < len(data):
        cuts.append(cuts[-1] + random_.choice((1, 2, 3, 4, 5, 8, 40)))
    scanner = PYTHON.scanner("x/y/z/u/v/w/m.py")
    found = [link for start, end in pairwise(cuts) for link in scanner.feed(data[start:end])]
    assert [(link.text, line_of_last_name(data, link.end)) for link in found] == expected
    assert found == scan(data, "x/y/z/u/v/w/m.py")
    return len(expected)


def agree_on(files: list[Path]) -> tuple[int, int]:
    """How many files, and imports in them, the two readings agree on."""
    read = imports = 0
    for file in files:
        try:
            source = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue  # other encodings, and files that are wrong on purpose
        try:
            imports += agrees_with_ast(source.rstrip("\n") + "\n")
        except AssertionError as error:
            raise AssertionError(f"{file}: {error}") from error
        read += 1
    return read, imports


def sources(folder: Path) -> list[Path]:
    """The Python files under a folder; what was installed into it left out."""
    return [file for file in sorted(folder.rglob("*.py")) if "site-packages" not in file.relative_to(folder).parts]


def sample(folder: Path, count: int) -> list[Path]:
    files = sources(folder)
    return files[:: max(1, len(files) // count)]


@pytest.mark.filterwarnings("ignore")
def test_same_imports_as_ast_in_the_standard_library() -> None:
    read, imports = agree_on(sample(STDLIB, 80))
    assert read > 40 and imports > 250, (read, imports)


@pytest.mark.filterwarnings("ignore")
def test_same_imports_as_ast_in_installed_packages() -> None:
    read, imports = agree_on(sample(Path(sysconfig.get_path("purelib")), 80))
    assert read > 40 and imports > 300, (read, imports)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_same_imports_as_ast_in_thousands_of_files() -> None:
    read, imports = agree_on([*sources(STDLIB), *sample(Path(sysconfig.get_path("purelib")), 1500)])
    print(f"{read} files, {imports} imported names")
    assert read > 2000 and imports > 20000, (read, imports)


# Any pieces, any text

FRAGMENTS = st.sampled_from(
    ["import ", "from ", "a", "b.c", ".", "..", ", ", " as d", "(", ")", "*", "\n", "\n", ";", ":", "#", "\\", "\\\n",
     "'", '"', "'''", '"""', "f'", "r'", " ", "\t", "é", "日", "x = ", "import a\n", "from a import b\n", "\r\n",
     "from a import (b,\n c)", "''", "if x:"]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.lists(FRAGMENTS, max_size=40).map("".join), st.lists(st.integers(0, 10**6), max_size=12))
def test_pieces_make_no_difference(source: str, cuts: list[int]) -> None:
    data = source.encode()
    whole = scan(data)
    assert in_pieces(data, cuts) == whole
    assert in_pieces(data, list(range(len(data)))) == whole
    assert all(data[link.start : link.end].lstrip().startswith((b"import", b"from")) for link in whole)


@settings(deadline=None, max_examples=400)
@given(st.lists(FRAGMENTS, max_size=25).map("".join))
def test_what_python_can_parse_is_read_alike(source: str) -> None:
    source = source.replace("\r\n", "\n") + "\n"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(source)
    except (SyntaxError, ValueError):
        return
    agrees_with_ast(source)


def test_a_long_text_costs_as_much_per_byte_as_a_short_one() -> None:
    """What is kept is bounded, whatever is open: nothing that is read again could grow."""
    for opened in (b"", b"'''", b"#", b"x = (", b"from a import (b"):
        scanner = _ImportScanner("m.py")
        scanner.feed(opened)
        for _ in range(2000):
            scanner.feed(b" some words, \\ 'and' more words ")
            assert len(scanner._statement) <= 200 and len(scanner._word) <= 8
