"""Files to look at, from options of ``ds2ds generate``."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from ds2ds.errors import ConfigError, Ds2dsError
from ds2ds.files import atomic_write_text, check_writable

if TYPE_CHECKING:
    from ds2ds.backend import Backend, TellsAttention
    from ds2ds.documents.generation_result import GenerationResult

PICTURES = (".html", ".svg")
HEAT_MAPS = (".png", ".svg")
ATTENTION = (".html", ".npz", *HEAT_MAPS)


def check_pictures(picture: Path | None, attention: Path | None, save: Path | None = None, *, force: bool) -> None:
    """Whether both files can be made: told before anything is generated.

    Args:
        save: the folder that is made beside them.

    Raises:
        ConfigError: an ending that is not known, a file that is already there (unless `force`) or cannot be written,
            one place for two of them, or what draws heat maps is not installed.
    """
    for option, path, endings in (("--picture", picture, PICTURES), ("--attention", attention, ATTENTION)):
        if path is None:
            continue
        if path.suffix.lower() not in endings:
            raise ConfigError(f"{option} must end in {', '.join(endings)}, got {str(path)!r}")
        if path.is_dir():
            raise ConfigError(f"{option}: {path} is a folder: name a file")
        if path.exists() and not force:
            raise ConfigError(f"{option}: {path} is already there: pass --force to replace it")
        try:
            check_writable(path)
        except OSError as error:
            raise ConfigError(f"{option}: cannot write {path}: {error}") from error
    given = {"--save": save, "--picture": picture, "--attention": attention}
    for (first, one), (second, other) in combinations(given.items(), 2):
        if one is not None and other is not None and one.absolute() == other.absolute():
            raise ConfigError(f"{first} and {second} must be two places, got {one} for both")
    if attention is not None and attention.suffix.lower() in HEAT_MAPS:
        from ds2ds.pictures.heat_map import require_matplotlib

        require_matplotlib()


def require_attention(backend: Backend) -> TellsAttention:
    """The backend as one that tells what tokens read.

    Raises:
        ConfigError: it does not.
    """
    from ds2ds.backend import TellsAttention

    if not isinstance(backend, TellsAttention):
        raise ConfigError(f"--attention: {type(backend).__name__} does not tell its attention")
    return backend


def write_pictures(backend: Backend, result: GenerationResult, picture: Path | None, attention: Path | None) -> None:
    """Make the files asked for.

    Raises:
        Ds2dsError: one cannot be made, or written.
    """
    if picture is not None:
        from ds2ds.pictures.link_graph_page import link_graph_html
        from ds2ds.pictures.link_graph_svg import link_graph_svg

        drawn = link_graph_svg(result) if picture.suffix.lower() == ".svg" else link_graph_html(result)
        try:
            atomic_write_text(picture, drawn)
        except OSError as error:
            raise Ds2dsError(f"cannot write {picture}: {error}") from error
    if attention is not None:
        kind = attention.suffix.lower()
        found = require_attention(backend).attention(result, per_token=kind not in HEAT_MAPS)
        if kind == ".html":
            found.to_html(attention)
        elif kind == ".npz":
            found.to_npz(attention)
        else:
            found.heatmap(attention)
