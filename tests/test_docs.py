"""The documentation builds without a warning, names everything there is, and its code runs."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ds2ds
from ds2ds import GenerationConfig, Runtime, errors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return out


def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert {"index.html", "architecture.html", "api/runtime.html"} <= {
        str(path.relative_to(site)) for path in site.rglob("*.html")
    }


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    reference = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    missing = [name for name in ds2ds.__all__ if not re.search(rf'id="ds2ds\.[\w.]*\b{name}"', reference)]
    assert missing == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?://[^"]*)"', path.read_text())
        assert loaded == [], path


def test_links_into_the_repository_are_text_on_the_site(site: Path) -> None:
    assert "(../kernels/sampling/host.py)" in page("sampling.md")
    assert (
        "host.py" in (site / "sampling.html").read_text() and "../kernels" not in (site / "sampling.html").read_text()
    )


def documented(text: str) -> dict[str, str | None]:
    """Each setting that has a row in a table, and its default, if the table has defaults."""
    return dict(re.findall(r"^\| `([\w]+)` \| `([^`]*)` \|", text, flags=re.MULTILINE))


def test_every_setting_is_documented_with_its_default() -> None:
    told = documented(page("configuration.md"))
    defaults = GenerationConfig().to_dict()
    for name, parameter in inspect.signature(Runtime.__init__).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            defaults[name] = parameter.default
    assert told == {name: repr(value) for name, value in defaults.items()}


def test_every_error_is_explained() -> None:
    names = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert len(names) >= 10
    assert [name for name in names if f"`{name}`" not in page("troubleshooting.md")] == []


def run_pieces(name: str, folder: Path) -> str:
    """What the Python of a page prints, run from top to bottom in a folder of its own."""
    pieces = re.findall(r"```python\n(.*?)```", page(name), flags=re.DOTALL)
    assert pieces
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(pieces)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, **offline},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_patterns_run(tmp_path: Path) -> None:
    printed = run_pieces("patterns.md", tmp_path)
    assert "['root', 'starter', 'sourdough']" in printed
    assert re.search(r"^[1-9]\d* reused, ", printed, flags=re.MULTILINE)
    assert "'parser': 'supplied'" in printed and "('compilers', 'compiler', 'edit')" in printed
    assert "\n['sourdough']\n" in printed and "['linker']" in printed
    assert {path.name for path in tmp_path.iterdir()} >= {"graph.svg", "graph.html", "attention.png", "attention.html"}


@pytest.mark.parametrize("name", ["interactive.md", "pictures.md", "titles.md"])
def test_the_code_of_other_pages_runs(name: str, tmp_path: Path) -> None:
    run_pieces(name, tmp_path)


def test_the_adapters_run(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    printed = run_pieces("adapters.md", tmp_path)
    assert printed.startswith("# Stack machine\n\nA [stack](stack) is")
    assert "\n(2, " in printed and "['Stack machine', 'stack'" in printed
    (accuracy,) = re.findall(r"^\d+\.\d+$", printed, flags=re.MULTILINE)  # the harness' score
    assert 0 <= float(accuracy) <= 1
    assert "(corpus: tree)" in printed


def test_pictures_are_there() -> None:
    for path in DOCS.rglob("*.md"):
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), (path, target)
