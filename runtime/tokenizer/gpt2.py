"""GPT-2's byte-pair encoding for tiktoken, from vocabulary files inside the package: no network."""

from __future__ import annotations

import functools
from importlib.resources import files

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

EOS_TOKEN = "<|endoftext|>"
EOS_TOKEN_ID = 50256
VOCAB_SIZE = 50257

# The digests that tiktoken itself demands of the files it would otherwise download.
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"

# The split pattern of GPT-2 (OpenAI, gpt-2/src/encoder.py), in the equivalent form without backtracking
# that tiktoken publishes for this encoding.
SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@functools.cache
def gpt2_encoding() -> tiktoken.Encoding:
    """The GPT-2 encoding (50,257 ids), equal to ``tiktoken.get_encoding("gpt2")``.

    The files' SHA-256 are checked by tiktoken on load; a damaged one raises ValueError.
    """
    data = files("ds2ds") / "data" / "gpt2"
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(data / "vocab.bpe"),
        encoder_json_file=str(data / "encoder.json"),
        vocab_bpe_hash=VOCAB_BPE_SHA256,
        encoder_json_hash=ENCODER_JSON_SHA256,
    )
    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=VOCAB_SIZE,
        pat_str=SPLIT_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={EOS_TOKEN: EOS_TOKEN_ID},
    )
