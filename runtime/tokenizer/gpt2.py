"""GPT-2's byte-pair encoding for tiktoken, from vocabulary files inside the package: no network."""

from __future__ import annotations

import functools
import hashlib
import json
from importlib.resources import files

import tiktoken

from ds2ds.errors import ConfigError

EOS_TOKEN = "<|endoftext|>"
VOCAB_SIZE = 50257

# The digests that tiktoken itself demands of the files it would otherwise download.
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"

# The split pattern of GPT-2 (OpenAI, gpt-2/src/encoder.py), in the equivalent form without backtracking
# that tiktoken publishes for this encoding.
SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def byte_of_character() -> dict[str, int]:
    """GPT-2 writes bytes as characters: printable ones of Latin-1 as themselves, the rest from U+0100 on."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


@functools.cache
def gpt2_encoding() -> tiktoken.Encoding:
    """The GPT-2 encoding (50,257 ids), equal to ``tiktoken.get_encoding("gpt2")``.

    ``encoder.json`` alone is read: ids are the ranks of the merges in ``vocab.bpe`` (a test holds the two together).

    Raises:
        ConfigError: the packaged file is damaged.
    """
    data = (files("ds2ds") / "data" / "gpt2" / "encoder.json").read_bytes()
    if hashlib.sha256(data).hexdigest() != ENCODER_JSON_SHA256:
        raise ConfigError("ds2ds/data/gpt2/encoder.json is not GPT-2's (its SHA-256 differs): install ds2ds again")
    table = byte_of_character()
    ids = json.loads(data)
    special = {EOS_TOKEN: ids.pop(EOS_TOKEN)}
    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=VOCAB_SIZE,
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={bytes(table[character] for character in token): rank for token, rank in ids.items()},
        special_tokens=special,
    )
