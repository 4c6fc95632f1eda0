"""Tokenizers of the `tokenizers` library, as they are or as transformers has them inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ds2ds.errors import ConfigError
from ds2ds.tokenizer.gpt2 import EOS_TOKEN, byte_of_character


class ByteLevelTokenizer:
    """A byte-level `tokenizers.Tokenizer`: its tokens are spelled with a character for each byte, as GPT-2's are.

    The library itself is not imported, and the tokenizer given stays as it is: a copy of it is used.
    """

    def __init__(self, given: Any, eos_token_id: int | None = None, name: str = "custom") -> None:
        self._given = given = type(given).from_str(given.to_str())
        given.encode_special_tokens = True  # as text, which is what a prompt is
        given.no_truncation()
        given.no_padding()
        self._special = {token for token, added in given.get_added_tokens_decoder().items() if added.special}
        self._bytes = byte_of_character()
        self.name = name
        self.vocab_size: int = given.get_vocab_size(with_added_tokens=True)
        self.eos_token_id: int | None = given.token_to_id(EOS_TOKEN) if eos_token_id is None else eos_token_id

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._given.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._spelled, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """None of a special token: it is a mark, not text."""
        return b"" if token in self._special else self._spelled(token)

    def _spelled(self, token: int) -> bytes:
        characters: str = self._given.id_to_token(token) or ""  # a model may have more ids than its tokenizer
        try:
            return bytes(self._bytes[character] for character in characters)
        except KeyError:  # an added token, which the library's decoder takes as it is, too
            return characters.encode()


def byte_level_of(tokenizer: Any) -> ByteLevelTokenizer | None:
    """What becomes of a `tokenizers.Tokenizer`, or of a transformers tokenizer that has a byte-level one inside; None
    of anything else.

    Raises:
        ConfigError: it is a `tokenizers.Tokenizer` that is not byte-level, whose tokens' bytes cannot be told.
    """
    if not _is_of_tokenizers(tokenizer):
        inside = None if hasattr(tokenizer, "token_bytes") else getattr(tokenizer, "backend_tokenizer", None)
        if not _is_of_tokenizers(inside) or _decoder(inside) != "ByteLevel":
            return None
        return ByteLevelTokenizer(
            inside, getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "name", "custom")
        )
    if _decoder(tokenizer) != "ByteLevel":
        raise ConfigError(
            f"tokenizer must have the decoder ByteLevel if it is a tokenizers.Tokenizer, got {_decoder(tokenizer)}: "
            "pass a ds2ds.Tokenizer(encode=lambda text: t.encode(text).ids, decode=t.decode, token_bytes=...)"
        )
    return ByteLevelTokenizer(tokenizer)


def _is_of_tokenizers(tokenizer: Any) -> bool:
    return all(hasattr(tokenizer, name) for name in ("id_to_token", "get_added_tokens_decoder", "to_str"))


def _decoder(tokenizer: Any) -> str:
    return type(tokenizer.decoder).__name__
