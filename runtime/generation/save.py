"""A result on disk: a markdown file per document, the graph between them, drawn too, and all of it as JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ds2ds.documents.generation_result import GeneratedDocument, GenerationResult
from ds2ds.documents.link_graph import link_graph
from ds2ds.documents.title_utils import create_filename, generate_title_hash
from ds2ds.errors import ConfigError, Ds2dsError
from ds2ds.files import atomic_folder, user_home
from ds2ds.pictures.link_graph_page import link_graph_html
from ds2ds.pictures.link_graph_svg import link_graph_svg

GRAPH_NAME = "graph.json"
RESULT_NAME = "result.json"
DRAWING_NAME = "graph.svg"
PAGE_NAME = "graph.html"

_DOCUMENT_NAME = re.compile(r".*_[0-9a-f]{6}(_[0-9]+)?\.md")
_LONGEST_STEM = 200  # file systems take 255 bytes; a title is as long as a model makes it


def save_result(result: GenerationResult, folder: str | Path, *, force: bool = False) -> None:
    """Write a result into a folder that appears, or is replaced, as a whole; of a link, the folder it leads to.

    It holds `create_filename(title)`.md per document (its text), graph.json (`graph`), result.json
    (`GenerationResult.to_dict`), and the graph to look at: graph.svg and graph.html (`ds2ds.pictures`).

    Raises:
        ConfigError: the folder may not be replaced, see `check_folder`, or a grant fits no document of the result;
            Ds2dsError: it cannot be written.
    """
    folder = Path(folder).resolve()
    check_folder(folder, force=force)
    try:
        with atomic_folder(folder) as new:
            _write_files(result, new)
    except OSError as error:
        raise Ds2dsError(f"cannot save the result to {folder}: {error}") from error


def check_folder(folder: str | Path, *, force: bool = False, used: Iterable[str | Path] = ()) -> None:
    """Whether a result may be saved there: in place of nothing, of an empty folder or of an earlier result.

    With `force` any folder is replaced, unless it is where we are or the user's home, or holds one of these.

    Args:
        used: files and folders that the result comes from, which are not to be replaced either.

    Raises:
        ConfigError: it may not.
    """
    folder = Path(folder).resolve()
    ancestor = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not ancestor.is_dir():
        raise ConfigError(f"cannot save to {folder}: {ancestor} is a file")
    place = folder.parent if ancestor == folder else ancestor
    if not os.access(place, os.W_OK):
        raise ConfigError(f"cannot save to {folder}: no permission to write in {place}")
    if ancestor != folder:
        return
    home = user_home()
    for kept in (Path.cwd(), *([home] if home else []), *(path for path in map(Path, used) if path.exists())):
        if kept.resolve().is_relative_to(folder):
            raise ConfigError(f"cannot save to {folder}: {kept} is in it and would be replaced; name a new folder")
    if not force and any(folder.iterdir()) and not _holds_result(folder):
        raise ConfigError(
            f"{folder} holds something else than an earlier result: name another folder, or pass --force (force=True) "
            "to replace it with all that is in it"
        )


def graph(result: GenerationResult) -> dict[str, Any]:
    """The documents of a result and what reads what.

    Returns:
        {"nodes": [{id, title, file, source, is_root, depth, parent, tokens, finish_reason, truncated}],
        "edges": [{source, target, position, end, link, resolved_by, score}]}: from token `position` on, up to `end`
        (None: to its last), the document `source` reads all of `target`; the other three as in `Grant`. Nodes are
        called by their id; `parent` is the one whose link brought the node in.

    Raises:
        ConfigError: see `link_graph`.
    """
    documents = result.get_all_documents()
    ids, found = _names(documents), link_graph(result)
    nodes = [
        {
            "id": name,
            "title": document.title,
            "file": f"{name}.md",
            "source": str(document.source),
            "is_root": document.is_root,
            "depth": document.depth,
            "parent": None if parent is None else ids[parent],
            "tokens": None if document.tokens is None else len(document.tokens),
            "finish_reason": document.finish_reason,
            "truncated": document.truncated,
        }
        for document, name, parent in zip(documents, ids, found.parents, strict=True)
    ]
    grants = [grant for document in documents for grant in document.grants]
    edges = [
        {
            "source": ids[edge.source],
            "target": ids[edge.target],
            "position": edge.position,
            "end": edge.end,
            "link": grant.link,
            "resolved_by": grant.resolved_by,
            "score": grant.score,
        }
        for edge, grant in zip(found.edges, grants, strict=True)
    ]
    return {"nodes": nodes, "edges": edges}


def _names(documents: list[GeneratedDocument]) -> list[str]:
    """A file name, without extension, for each document; no two are equal."""
    names: list[str] = []
    for document in documents:
        name, copy = create_filename(document.title), 2
        if len(name) > _LONGEST_STEM:
            name = f"{name[:_LONGEST_STEM]}_{generate_title_hash(document.title)}"
        stem = name
        while name in names:
            name, copy = f"{stem}_{copy}", copy + 1
        names.append(name)
    return names


def _write_files(result: GenerationResult, folder: Path) -> None:
    documents = result.get_all_documents()
    for document, name in zip(documents, _names(documents), strict=True):
        text = document.text or ""
        (folder / f"{name}.md").write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    for file, values, indent in ((GRAPH_NAME, graph(result), 2), (RESULT_NAME, result.to_dict(), None)):
        text = json.dumps(values, ensure_ascii=False, indent=indent, allow_nan=False)
        (folder / file).write_text(text + "\n", encoding="utf-8")
    for file, drawn in ((DRAWING_NAME, link_graph_svg(result)), (PAGE_NAME, link_graph_html(result))):
        (folder / file).write_text(drawn, encoding="utf-8")


def _holds_result(folder: Path) -> bool:
    names = {entry.name for entry in folder.iterdir()}
    own = {GRAPH_NAME, RESULT_NAME}
    rest = names - own - {DRAWING_NAME, PAGE_NAME}  # results of earlier versions lack these
    return own <= names and all(_DOCUMENT_NAME.fullmatch(name) for name in rest)
