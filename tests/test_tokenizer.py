"""The packaged GPT-2 vocabulary against tiktoken's own definition of it, and tokenizers that callers bring."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken_ext.openai_public
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.errors import ConfigError
from ds2ds.tokenizer import Tokenizer, as_tokenizer, gpt2, gpt2_encoding

GPT2 = as_tokenizer()
EOS = 50256
DATA = Path(str(files("ds2ds"))) / "data" / "gpt2"
SPLIT = "\U0001d518"  # a letter whose four bytes GPT-2 spreads over several tokens
QUICK = settings(max_examples=100, deadline=None, derandomize=True)

id_lists = st.lists(st.integers(0, EOS - 1), max_size=12)


@functools.cache
def tiktokens_definition() -> tuple[dict[str, Any], dict[str, Any]]:
    """What tiktoken asks of the files it would download, and the arguments of its Encoding, without downloading."""
    asked: dict[str, Any] = {}

    def record(**arguments: Any) -> dict[bytes, int]:
        asked.update(arguments)
        return gpt2_encoding()._mergeable_ranks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken_ext.openai_public, "data_gym_to_mergeable_bpe_ranks", record)
        return asked, tiktoken_ext.openai_public.gpt2()


@pytest.mark.parametrize(
    ("file", "argument", "digest"),
    [
        (
            "vocab.bpe",
            "vocab_bpe_hash",
            "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        ),
        (
            "encoder.json",
            "encoder_json_hash",
            "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        ),
    ],
)
def test_packaged_files_are_those_that_tiktoken_demands(file: str, argument: str, digest: str) -> None:
    asked, _ = tiktokens_definition()
    assert hashlib.sha256((DATA / file).read_bytes()).hexdigest() == digest
    assert asked[argument] == digest
    assert digest in (gpt2.VOCAB_BPE_SHA256, gpt2.ENCODER_JSON_SHA256)


def test_names_and_sizes_are_tiktokens() -> None:
    _, theirs = tiktokens_definition()
    ours = gpt2_encoding()
    assert (ours.name, ours.n_vocab) == (theirs["name"], theirs["explicit_n_vocab"]) == ("gpt2", 50257)
    assert ours._special_tokens == theirs["special_tokens"] == {"<|endoftext|>": EOS}
    assert (GPT2.name, GPT2.vocab_size, GPT2.eos_token_id) == ("gpt2", 50257, EOS)


@QUICK
@given(
    st.text() | st.lists(st.sampled_from(["'s", " ", "\n", "\t", "a", "Ab", "1", "23", ".", "é", SPLIT])).map("".join)
)
def test_texts_are_split_as_tiktoken_splits_them(text: str) -> None:
    theirs = tiktoken_gpt2()
    assert GPT2.encode(text) == theirs.encode_ordinary(text)


@functools.cache
def tiktoken_gpt2() -> tiktoken.Encoding:
    return tiktoken.Encoding(**tiktokens_definition()[1])


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [31373, 995]),
        ("[", [58]),
        (" [", [685]),
        ("](", [16151]),
        (")", [8]),
        ("", []),
    ],
)
def test_published_ids(text: str, ids: list[int]) -> None:
    assert GPT2.encode(text) == ids
    assert GPT2.decode(ids) == text


def test_the_encoding_is_built_once() -> None:
    assert gpt2_encoding() is gpt2_encoding()


def test_damaged_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "gpt2"
    shutil.copytree(DATA, folder)
    content = bytearray((folder / "encoder.json").read_bytes())
    content[-10] ^= 1
    (folder / "encoder.json").write_bytes(content)
    monkeypatch.setattr(gpt2, "files", lambda package: tmp_path)
    with pytest.raises(ConfigError, match=r"encoder\.json"):
        gpt2_encoding.__wrapped__()


@QUICK
@given(st.text())
def test_text_comes_back(text: str) -> None:
    ids = GPT2.encode(text)
    assert GPT2.decode(ids) == text
    assert b"".join(map(GPT2.token_bytes, ids)) == text.encode()


@QUICK
@given(id_lists)
def test_any_ids_decode_to_their_bytes_with_replacement(ids: list[int]) -> None:
    assert GPT2.decode(ids) == b"".join(map(GPT2.token_bytes, ids)).decode("utf-8", errors="replace")


def test_a_character_split_between_tokens_keeps_its_bytes() -> None:
    ids = GPT2.encode(SPLIT)
    assert len(ids) > 1
    assert b"".join(map(GPT2.token_bytes, ids)) == SPLIT.encode()
    assert "\ufffd" in GPT2.decode(ids[:1])


def test_a_special_token_in_a_text_is_text_and_its_id_has_no_bytes() -> None:
    ids = GPT2.encode("a<|endoftext|>")
    assert EOS not in ids
    assert GPT2.decode(ids) == "a<|endoftext|>"
    assert GPT2.token_bytes(EOS) == b""


@pytest.mark.parametrize("token", [EOS + 1, 10**6])
def test_an_id_beyond_the_vocabulary_has_no_text(token: int) -> None:
    """Models whose vocabulary was rounded up have such ids."""
    assert GPT2.token_bytes(token) == b""
    assert GPT2.decode([*GPT2.encode("one"), token, *GPT2.encode(" two")]) == "one two"


def test_torch_is_not_loaded() -> None:
    code = "import sys, ds2ds.tokenizer as t; t.as_tokenizer(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# What callers bring.


class Letters:
    """One id per character, offset by `first`; ids come as floats from an array-like, to be made ints."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def encode(self, text: str) -> list[Any]:
        return [float(ord(letter) - self.first) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token + self.first) for token in ids)


class Described(Letters):
    name = "letters"
    vocab_size = 128
    eos_token_id = 3

    def token_bytes(self, token: int) -> bytes:
        return b"<%d>" % token


def test_a_tokenizer_stays_itself() -> None:
    assert as_tokenizer(GPT2) is GPT2


def test_an_object() -> None:
    tokenizer = as_tokenizer(Letters(first=10))
    ids = tokenizer.encode("né")
    assert ids == [ord("n") - 10, ord("é") - 10]
    assert all(type(token) is int for token in ids)
    assert tokenizer.decode(ids) == "né"
    assert [tokenizer.token_bytes(token) for token in ids] == [b"n", "é".encode()]
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_token_id) == ("custom", None, None)


def test_an_object_that_says_more() -> None:
    tokenizer = as_tokenizer(Described())
    assert tokenizer.token_bytes(65) == b"<65>"
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_token_id) == ("letters", 128, 3)


def test_a_pair_of_callables() -> None:
    tokenizer = as_tokenizer((lambda text: map(ord, text), lambda ids: "".join(map(chr, ids))))
    assert tokenizer.encode("ab") == [97, 98]
    assert tokenizer.decode([97, 98]) == "ab"
    assert tokenizer.token_bytes(233) == "é".encode()
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_token_id) == ("custom", None, None)


def test_bound_methods_of_an_object_are_called_with_it() -> None:
    letters = Letters(first=10)
    tokenizer = as_tokenizer((letters.encode, letters.decode))
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert tokenizer.encode("n") == [ord("n") - 10]


class Marking(Letters):
    """Puts marks around a text unless told not to, as tokenizers of transformers do."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        marks = [0] * add_special_tokens
        return [*marks, *super().encode(text), *marks]


def test_marks_of_a_tokenizers_own_are_left_out() -> None:
    marking = Marking(first=10)
    assert marking.encode("n") == [0, ord("n") - 10, 0]
    for brought in (marking, (marking.encode, marking.decode)):
        assert as_tokenizer(brought).encode("n") == [ord("n") - 10]


def small_encoding() -> tiktoken.Encoding:
    """Single bytes and one special token, which is not GPT-2's."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    return tiktoken.Encoding("bytes", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={"<|sep|>": 256})


def as_object(encoding: tiktoken.Encoding) -> Any:
    return encoding


def as_bound_pair(encoding: tiktoken.Encoding) -> Any:
    return encoding.encode, encoding.decode


def as_ordinary_pair(encoding: tiktoken.Encoding) -> Any:
    return encoding.encode_ordinary, encoding.decode


@pytest.mark.parametrize("given_as", [as_object, as_bound_pair, as_ordinary_pair])
def test_a_tiktoken_encoding_keeps_bytes_and_special_tokens(given_as: Callable[[tiktoken.Encoding], Any]) -> None:
    """As an object or as the pair of its methods that a front end passes to LinkedDocumentGenerator."""
    tokenizer = as_tokenizer(given_as(gpt2_encoding()))
    ids = tokenizer.encode(f"<|endoftext|>{SPLIT}")
    assert ids == GPT2.encode(f"<|endoftext|>{SPLIT}")
    assert b"".join(map(tokenizer.token_bytes, ids)) == f"<|endoftext|>{SPLIT}".encode()
    assert tokenizer.token_bytes(EOS) == b""
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_token_id) == ("gpt2", 50257, EOS)


def test_an_id_that_an_encoding_leaves_out_has_no_text() -> None:
    """As 100256 of cl100k_base: a model of as many ids may draw it."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    special = {"<|endoftext|>": 257, "<|mark|>": 260}
    tokenizer = as_tokenizer(tiktoken.Encoding("gaps", pat_str=r"\S", mergeable_ranks=ranks, special_tokens=special))
    assert [tokenizer.token_bytes(token) for token in (256, 257, 258, 260, 261)] == [b""] * 5
    assert tokenizer.decode([ord("a"), 256, 258, ord("b"), 261]) == "ab"
    with pytest.raises(ValueError, match="token id -1 is not in the vocabulary of gaps"):
        tokenizer.token_bytes(-1)


@pytest.mark.parametrize("given_as", [as_object, as_bound_pair])
def test_another_tiktoken_encoding(given_as: Callable[[tiktoken.Encoding], Any]) -> None:
    tokenizer = as_tokenizer(given_as(small_encoding()))
    assert tokenizer.encode("é") == list("é".encode())
    assert tokenizer.token_bytes(0xC3) == b"\xc3"
    assert tokenizer.token_bytes(256) == b""
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_token_id) == ("bytes", 257, None)


def test_methods_of_two_encodings_are_a_plain_pair() -> None:
    tokenizer = as_tokenizer((small_encoding().encode, gpt2_encoding().decode))
    assert tokenizer.encode("[") == [ord("[")]
    assert tokenizer.decode([58]) == "["
    assert tokenizer.name == "custom"


def tokenizers_gpt2() -> Any:
    """GPT-2's vocabulary in the `tokenizers` library, with a token added that is text; it cuts and pads."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.BPE.from_file(str(DATA / "encoder.json"), str(DATA / "vocab.bpe"))
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.add_tokens(["→ text"])
    made.enable_truncation(3)
    made.enable_padding(length=3)
    return made


def as_itself(given: Any) -> Any:
    return given


def as_its_methods(given: Any) -> Any:
    return given.encode, given.decode


@pytest.mark.parametrize("given_as", [as_itself, as_its_methods])
def test_a_byte_level_tokenizer_of_tokenizers_knows_its_bytes(given_as: Callable[[Any], Any]) -> None:
    given = tokenizers_gpt2()
    tokenizer = as_tokenizer(given_as(given))
    text = f"<|endoftext|> A [linker]({SPLIT}) joins\n\n"
    assert tokenizer.encode(text) == GPT2.encode(text)
    assert [tokenizer.token_bytes(i) for i in range(EOS + 1)] == [GPT2.token_bytes(i) for i in range(EOS + 1)]
    assert tokenizer.decode(GPT2.encode(text)) == text and tokenizer.decode([EOS]) == "<|endoftext|>"
    assert tokenizer.decode(GPT2.encode(SPLIT)[:1]) == "\ufffd"
    assert tokenizer.encode("→ text") == [EOS + 1] and tokenizer.token_bytes(EOS + 1) == "→ text".encode()
    assert tokenizer.token_bytes(EOS + 2) == b""
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_token_id) == ("custom", EOS + 2, EOS)
    assert given.truncation is not None and given.padding is not None and not given.encode_special_tokens


def test_a_tokenizer_of_transformers_is_read_through() -> None:
    class OfTransformers(Letters):
        backend_tokenizer = tokenizers_gpt2()
        eos_token_id = 7
        name = "theirs"

    tokenizer = as_tokenizer(OfTransformers())
    assert tokenizer.token_bytes(GPT2.encode(SPLIT)[0]) == SPLIT.encode()[:2]
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_token_id) == ("theirs", EOS + 2, 7)

    class Own(Described):
        backend_tokenizer = OfTransformers.backend_tokenizer

    assert as_tokenizer(Own()).token_bytes(65) == b"<65>"


def test_a_tokenizer_of_tokenizers_that_is_not_byte_level_is_refused() -> None:
    given = tokenizers_gpt2()
    given.decoder = pytest.importorskip("tokenizers").decoders.WordPiece()
    with pytest.raises(ConfigError, match=r"ByteLevel .* got WordPiece: pass a ds2ds.Tokenizer\(encode="):
        as_tokenizer(given)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ("gpt2", "str"),
        (7, "int"),
        (object(), "object"),
        (("encode", "decode"), "tuple"),
        ((str.encode,), "tuple"),
        ((str.encode, bytes.decode, len), "tuple"),
        ({"encode": str.encode}, "dict"),
    ],
)
def test_what_is_no_tokenizer_is_refused(bad: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^tokenizer must be .* got {named}$"):
        as_tokenizer(bad)


def test_a_tokenizer_is_a_plain_value() -> None:
    tokenizer = Tokenizer(encode=GPT2.encode, decode=GPT2.decode, token_bytes=GPT2.token_bytes)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_token_id) == ("custom", None, None)


def test_the_ids_are_the_ranks_of_the_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tiktoken reads out of both files is what we read out of one; its cache of files stays out of it."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    folder = Path(str(files("ds2ds"))) / "data" / "gpt2"
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    assert gpt2_encoding()._mergeable_ranks == ranks


def test_a_read_only_tiktoken_cache_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "missing"))
    gpt2_encoding.cache_clear()
    assert gpt2_encoding().n_vocab == 50257
    assert not (tmp_path / "missing").exists()
