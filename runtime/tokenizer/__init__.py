"""Text to token ids and back: the packaged GPT-2 vocabulary, or one that the caller brings."""

from ds2ds.tokenizer.gpt2 import gpt2_encoding
from ds2ds.tokenizer.text_stream import TextStream
from ds2ds.tokenizer.tokenizer import Tokenizer, as_tokenizer

__all__ = ["TextStream", "Tokenizer", "as_tokenizer", "gpt2_encoding"]
