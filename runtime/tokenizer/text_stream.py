"""The text of tokens as they come."""

from __future__ import annotations

import codecs

from ds2ds.tokenizer.tokenizer import Tokenizer


class TextStream:
    """The text of tokens as they come; a character split between tokens comes with its last byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """What can be told now that this token has come."""
        return self._decoder.decode(self._token_bytes(token))

    def finish(self) -> str:
        """What is left: U+FFFD for bytes that are no character."""
        return self._decoder.decode(b"", final=True)
