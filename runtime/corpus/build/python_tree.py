"""A Python source tree: each file is a document, its imports are the links."""

from __future__ import annotations

from pathlib import Path

from ds2ds.corpus.build.source_files import SourceFolder, list_sources, readable

ENDINGS = (".py",)


def read_python_tree(source: Path, skip_unreadable: bool) -> SourceFolder:
    """The Python files under `source`, titled by their paths in it, "a/b.py", as imports name them.

    The folder is where absolute imports start: the one that would be on Python's path. If it is a package itself (it
    has an ``__init__.py``), titles start with its name.

    Raises:
        CorpusError: no such folder; a file that cannot be read or is not UTF-8, unless those are skipped.
    """
    name = source.absolute().name
    package = f"{name}/" if (source / "__init__.py").is_file() and name.isidentifier() else ""
    remarks: list[str] = []
    found = list_sources(source, skip_unreadable, remarks)
    files = [(file, package + str(path)) for file, path in found if path.suffix.lower() in ENDINGS]
    return SourceFolder(tuple(readable(files, skip_unreadable, remarks)), "python", tuple(remarks))
