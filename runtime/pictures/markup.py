"""What every page is made of: escaped text, the frame, and that nothing comes from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib.resources import files

from rich.cells import get_character_cell_size

# What XML 1.0 has no character for, and marks that turn the direction of the text around them.
_NOT_SHOWN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """Any text as text or as an attribute's value, in HTML and in XML."""
    return html.escape(_NOT_SHOWN.sub("\ufffd", text))


def shorten(text: str, width: int) -> str:
    """On one line of at most so many columns; wide characters take two."""
    text = " ".join(text.split())
    columns = 0
    for at, character in enumerate(text):
        columns += get_character_cell_size(character)
        if columns > width:
            while columns > width - 1:
                columns -= get_character_cell_size(text[at])
                at -= 1
            return text[: at + 1].rstrip() + "…"
    return text


def asset(name: str) -> str:
    return (files("ds2ds.pictures") / "assets" / name).read_text(encoding="utf-8")


def page(title: str, css: str, body: str, script: str = "") -> str:
    """A whole document. Its policy lets the browser load nothing, and run this script and no other."""
    allowed = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed += f"; script-src 'sha256-{digest}'"
        script = f"<script>{script}</script>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{asset('page.css')}{css}</style>\n</head>\n"
        f"<body>\n{body}\n{script}</body>\n</html>\n"
    )
