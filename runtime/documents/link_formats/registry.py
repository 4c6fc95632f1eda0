"""Link formats by name: the packaged ones, and those of other packages (entry points)."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ds2ds.documents.link_formats.base import LinkFormat
from ds2ds.documents.link_formats.latex import Latex
from ds2ds.documents.link_formats.markdown import Markdown
from ds2ds.documents.link_formats.null import Null
from ds2ds.documents.link_formats.python_imports import PythonImports
from ds2ds.documents.link_formats.wikilinks import Wikilinks
from ds2ds.errors import ConfigError

ENTRY_POINT_GROUP = "ds2ds.link_formats"
DEFAULT_FORMAT = "markdown"

LINK_FORMATS: dict[str, LinkFormat] = {
    known.name: known
    for known in (
        Markdown(),
        Wikilinks(),
        PythonImports(),
        Latex(),
        Latex("latex+ref", references=True),
        Latex("arxiv", several_keys=False),
        Null(),
    )
}
"""The packaged formats. Those of other packages are looked up when they are asked for."""


def same_family(one: str, other: str) -> bool:
    """Whether documents whose links are of one format can be read with the other: they differ in what they count as
    links, as "latex" and "latex+ref" do, or one of them counts none."""
    families = [{"arxiv": "latex"}.get(name, name.partition("+")[0]) for name in (one, other)]
    return families[0] == families[1] or Null().name in families


def _load(plugin: EntryPoint) -> LinkFormat:
    where = f"the link format {plugin.name!r} ({plugin.value})"
    try:
        loaded: Any = plugin.load()
        made = loaded() if isinstance(loaded, type) else loaded
    except Exception as error:  # another package's code may fail in any way
        raise ConfigError(f"{where} cannot be loaded: {error!r}") from error
    if not isinstance(made, LinkFormat):
        raise ConfigError(f"{where} must have a name and scanner(document_title), got {type(made).__name__}")
    if made.name != plugin.name:
        raise ConfigError(f"{where} calls itself {made.name!r}: its entry point must have the same name")
    return made


def link_format(name_or_format: str | LinkFormat) -> LinkFormat:
    """The link format of a name; a format itself is given back.

    An entry point of the group `ds2ds.link_formats` is a format, or a class that makes one without arguments. Packaged
    names come first.

    Raises:
        ConfigError: there is none of this name (all there are are listed), or its package is broken.
    """
    if not isinstance(name_or_format, str):
        if isinstance(name_or_format, LinkFormat) and not isinstance(name_or_format, type):
            return name_or_format
        raise ConfigError(
            f"a link format must be a name or have a name and scanner(document_title), got {name_or_format!r}"
        )
    if name_or_format in LINK_FORMATS:
        return LINK_FORMATS[name_or_format]
    plugins = {found.name: found for found in entry_points(group=ENTRY_POINT_GROUP)}
    if name_or_format in plugins:
        return _load(plugins[name_or_format])
    there = ", ".join([*LINK_FORMATS, *sorted(set(plugins) - set(LINK_FORMATS))])
    raise ConfigError(f"there is no link format {name_or_format!r}; there are: {there}")
