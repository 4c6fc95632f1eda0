"""Link formats: markdown, wikilinks, Python imports, LaTeX, and those of other packages."""

from ds2ds.documents.link_formats.base import LinkFormat, Scanner
from ds2ds.documents.link_formats.registry import DEFAULT_FORMAT, LINK_FORMATS, link_format, same_family

__all__ = ["DEFAULT_FORMAT", "LINK_FORMATS", "LinkFormat", "Scanner", "link_format", "same_family"]
