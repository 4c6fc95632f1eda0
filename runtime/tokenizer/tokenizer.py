"""What the runtime needs of a tokenizer, and how anything with encode/decode becomes one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tiktoken

from ds2ds.errors import ConfigError
from ds2ds.tokenizer.byte_level import byte_level_of
from ds2ds.tokenizer.gpt2 import gpt2_encoding


@dataclass(frozen=True)
class Tokenizer:
    """Token ids to text and back.

    Attributes:
        encode: text to ids; text that looks like a special token is encoded as ordinary text.
        decode: ids to text; bytes that are no valid UTF-8 become U+FFFD.
        token_bytes: the bytes of one id; ValueError if there is none. The link scanner reads these, so that a
            character split between two tokens is read whole.
        name: what a corpus records as its tokenizer ("gpt2").
        vocab_size: number of ids, None if unknown.
        eos_token_id: the id that ends a document, None if unknown.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    token_bytes: Callable[[int], bytes]
    name: str = "custom"
    vocab_size: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_bytes", _remembered(self.token_bytes, self.name))


def _remembered(token_bytes: Callable[[int], bytes], name: str) -> Callable[[int], bytes]:
    """Every token passes several times; a tokenizer is asked once, and what it raises is made one error."""

    @functools.cache
    def remembered(token: int) -> bytes:
        try:
            return token_bytes(token)
        except (KeyError, IndexError, OverflowError) as error:
            raise ValueError(f"token id {token} is not in the vocabulary of {name}") from error

    return remembered


def _from_tiktoken(encoding: tiktoken.Encoding) -> Tokenizer:
    special = set(encoding._special_tokens.values())

    # Training code rounds the vocabulary up, so a model may draw an id beyond the tokenizer's: it has no text. No more
    # has one that an Encoding leaves out among its own, as cl100k_base does between its special tokens.
    known = encoding.n_vocab
    left_out = set(range(known)) - set(encoding._mergeable_ranks.values()) - special

    def decode(ids: Sequence[int]) -> str:
        try:
            return encoding.decode(list(ids), errors="replace")
        except KeyError:
            return encoding.decode([one for one in ids if one < known and one not in left_out], errors="replace")

    def token_bytes(token: int) -> bytes:
        # A special token is a mark, not text: it must not look like `<...>` to the link scanner.
        without = token in special or token >= known or token in left_out
        return b"" if without else encoding.decode_single_token_bytes(token)

    return Tokenizer(
        encode=encoding.encode_ordinary,
        decode=decode,
        token_bytes=token_bytes,
        name=encoding.name,
        vocab_size=encoding.n_vocab,
        eos_token_id=encoding._special_tokens.get("<|endoftext|>"),
    )


def _of_text_alone(encode: Callable[..., Any]) -> Callable[..., Any]:
    """Without the marks that transformers' tokenizers put around every text, headings too: here layouts see to it."""
    try:
        marks = "add_special_tokens" in inspect.signature(encode).parameters
    except (TypeError, ValueError):  # of a built-in function that does not tell
        return encode
    return functools.partial(encode, add_special_tokens=False) if marks else encode


def gpt2_tokenizer() -> Tokenizer:
    """The packaged GPT-2 tokenizer (vocabulary 50,257, EOS 50256)."""
    return _from_tiktoken(gpt2_encoding())


def as_tokenizer(tokenizer: Any = None) -> Tokenizer:
    """Make a Tokenizer of what the caller has.

    Args:
        tokenizer: None for the packaged GPT-2; a Tokenizer; a tiktoken Encoding; a byte-level ``tokenizers.Tokenizer``,
            or a transformers tokenizer over one; any object with ``encode(str) -> ids`` and ``decode(ids) -> str`` (and
            optionally ``token_bytes(id) -> bytes``, ``name``, ``vocab_size``, ``eos_token_id``); or a pair
            ``(encode, decode)``. The pair of such a tokenizer's own methods is as good as the tokenizer. What takes
            ``encode(str, add_special_tokens=...)``, as transformers' do, is told False.

    Raises:
        ConfigError: it is none of these.
    """
    if tokenizer is None:
        return gpt2_tokenizer()
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(tokenizer, tiktoken.Encoding):
        return _from_tiktoken(tokenizer)
    tokenizer = byte_level_of(tokenizer) or tokenizer
    if isinstance(tokenizer, tuple) and len(tokenizer) == 2:
        encode, decode = tokenizer
        # Methods of one tokenizer, as front ends pass them: their owner knows the bytes and the special tokens.
        owner, other = (getattr(method, "__self__", None) for method in (encode, decode))
        if owner is other:
            if isinstance(owner, tiktoken.Encoding):
                return _from_tiktoken(owner)
            if (whole := byte_level_of(owner)) is not None:
                tokenizer, encode, decode = whole, whole.encode, whole.decode
    else:
        encode, decode = getattr(tokenizer, "encode", None), getattr(tokenizer, "decode", None)
    if not (callable(encode) and callable(decode)):
        raise ConfigError(
            f"tokenizer must be None, have encode and decode, or be a pair of callables, got {type(tokenizer).__name__}"
        )

    encode = _of_text_alone(encode)

    def encode_ids(text: str) -> list[int]:
        return [int(token) for token in encode(text)]

    def one_token_bytes(token: int) -> bytes:
        # All that a plain decode can tell: a character split between tokens is lost here, which is why
        # an object with token_bytes is better.
        text: str = decode([token])
        return text.encode("utf-8")

    return Tokenizer(
        encode=encode_ids,
        decode=decode,
        token_bytes=getattr(tokenizer, "token_bytes", one_token_bytes),
        name=getattr(tokenizer, "name", "custom"),
        vocab_size=getattr(tokenizer, "vocab_size", getattr(tokenizer, "n_vocab", None)),
        eos_token_id=getattr(tokenizer, "eos_token_id", None),
    )
