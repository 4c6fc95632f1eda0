"""Layout policies: what stands around a document's body, as the model was trained.

``null``: nothing. ``bos_eos``: EOS before and after. ``identifier_prefix``: ``# {title}\\n\\n`` before.
``identifier_prefix_bos_eos``: EOS, the heading, the body, EOS. GPT-2's EOS is its document separator and
serves as the beginning mark too.

A document that is written ends where the model draws EOS, which is the suffix of the layouts that have one. One that a
limit or a stop string ends has no suffix, like a document of the corpus that is cut.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ds2ds.documents.document import plain_ids
from ds2ds.errors import ConfigError

LAYOUT_POLICIES = ("null", "bos_eos", "identifier_prefix", "identifier_prefix_bos_eos")

HEADINGS = 4096
"""Most headings of which a layout keeps the ids."""

_HEADING = re.compile(r"# ([^\n]+)\n")
_WHOLE_HEADING = re.compile(r"# [^\n]+\n\n")


@dataclass(frozen=True)
class Layout:
    """Wraps a document's body.

    Args:
        policy: one of LAYOUT_POLICIES.
        encode: text to ids, for the heading.
        eos_token_id: the mark before and after.
    """

    policy: str
    encode: Callable[[str], list[int]]
    eos_token_id: int
    _heading: Callable[[str], list[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Titles come again and again, and a tokenizer takes long to begin.
        encode = self.encode
        heading = functools.lru_cache(HEADINGS)(lambda title: encode(f"# {title}\n\n"))
        object.__setattr__(self, "_heading", heading)
        if self.policy not in LAYOUT_POLICIES:
            raise ConfigError(f"layout_policy must be one of {LAYOUT_POLICIES}, got {self.policy!r}")

    @property
    def has_marks(self) -> bool:
        return self.policy.endswith("bos_eos")

    @property
    def has_heading(self) -> bool:
        return self.policy.startswith("identifier_prefix")

    def prefix(self, title: str) -> list[int]:
        """What a document with this title starts with; may be empty."""
        heading = self._heading(title) if self.has_heading else ()
        return [*[self.eos_token_id] * self.has_marks, *heading]

    def encode_start(self, text: str) -> list[int]:
        """The ids of a text that starts a document: a heading is encoded by itself, as `prefix` does it.

        GPT-2 has a token for two line ends, but encodes them as two where a word follows.
        """
        match = _WHOLE_HEADING.match(text) if self.has_heading else None
        cut = match.end() if match else 0
        return [*self.encode(text[:cut]), *self.encode(text[cut:])]

    def begin(self, title: str | None, tokens: list[int]) -> list[int]:
        """`tokens` with the prefix before them (of no title: its mark alone), as far as they do not start with it."""
        mark = [self.eos_token_id] * self.has_marks
        heading = [] if title is None else self.prefix(title)[len(mark) :]
        for part in (mark, heading):
            if tokens[: len(part)] == part:
                tokens = tokens[len(part) :]
        return [*mark, *heading, *tokens]

    def suffix(self) -> list[int]:
        return [self.eos_token_id] * self.has_marks

    def wrap(self, title: str, body: Sequence[int]) -> list[int]:
        """prefix + body + suffix: a whole document as the model reads it (S1)."""
        return [*self.prefix(title), *plain_ids(body), *self.suffix()]


def heading_title(text: str) -> str | None:
    """The title in a text that starts with the heading an identifier layout writes, or None."""
    match = _HEADING.match(text)
    return match.group(1).strip() if match else None
