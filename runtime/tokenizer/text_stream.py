"""The text of tokens as they come."""

from __future__ import annotations

import codecs

from ds2ds.tokenizer.tokenizer import Tokenizer


class TextStream:
    """The text of tokens as they come; a character split between tokens comes with its last byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._begun = b""  # of a character

    def feed(self, token: int) -> str:
        """What can be told now that this token has come."""
        return self._decode(self._token_bytes(token))

    def finish(self) -> str:
        """What is left: U+FFFD for bytes that are no character."""
        return self._decode(b"", final=True)

    def _decode(self, data: bytes, final: bool = False) -> str:
        # What codecs' incremental decoder does, without its two layers of Python, once for every token.
        data = self._begun + data
        text, read = codecs.utf_8_decode(data, "replace", final)
        self._begun = data[read:]
        return text
