from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds2ds.documents.link_detector import DetectedLink, LinkDetector
from ds2ds.documents.link_scanner import LinkScanner
from ds2ds.tokenizer import Tokenizer, as_tokenizer

GPT2 = as_tokenizer(None)
DETECTOR = LinkDetector()


class ByteTokenizer:
    """A token a byte, 256 ends a document; not told otherwise, a decoder loses split characters."""

    name = "bytes"
    vocab_size = 257
    eos_token_id = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


def test_constants_are_those_of_the_vocabulary() -> None:
    assert GPT2.encode("[") == [LinkDetector.OPEN_BRACKET]
    assert GPT2.encode(" [") == [LinkDetector.OPEN_BRACKET_AFTER_SPACE]
    assert GPT2.encode("](") == [LinkDetector.LINK_MIDDLE]
    assert GPT2.encode(")") == [LinkDetector.CLOSE_PAREN]
    assert GPT2.eos_token_id == LinkDetector.EOS
    assert GPT2.vocab_size == LinkDetector.VOCAB_SIZE


def test_positions_and_tokens() -> None:
    text, target = GPT2.encode("the machine"), GPT2.encode("Turing machine")
    tokens = [464, 685, *text, 16151, *target, 8]
    end = len(tokens) - 1
    middle = 2 + len(text)
    assert DETECTOR.detect_link_at_position(tokens, end) == DetectedLink(
        bracket_open_pos=1,
        bracket_close_pos=middle,
        paren_open_pos=middle,
        paren_close_pos=end,
        link_text_tokens=text,
        target_tokens=target,
        text="the machine",
        target="Turing machine",
    )
    assert all(DETECTOR.detect_link_at_position(tokens, position) is None for position in range(end))


def test_brackets_in_tokens_of_their_own() -> None:
    detector = LinkDetector(ByteTokenizer())
    tokens = list("x[é](日)".encode())
    link = detector.detect_link_at_position(tokens, len(tokens) - 1)
    assert link is not None
    positions = (link.bracket_open_pos, link.bracket_close_pos, link.paren_open_pos, link.paren_close_pos)
    assert positions == (1, 4, 5, 9)
    assert link.link_text_tokens == list("é".encode())
    assert link.target_tokens == list("日".encode())


@pytest.mark.parametrize(
    ("source", "text", "target"),
    [
        ('"[a](Foo bar).', "a", "Foo bar"),
        ("[[a](C (language))],", "a", "C (language)"),
        (r"[x\]y](a\)b)", "x]y", "a)b"),
        ("[a](<b c> 'title');", "a", "b c"),
        ("[a](🦉)", "a", "🦉"),
        ("[](x)", "", "x"),
        ("[x]()", "x", ""),
    ],
)
def test_tokens_decode_to_text_and_target(source: str, text: str, target: str) -> None:
    tokens = GPT2.encode(source)
    found = [DETECTOR.detect_link_at_position(tokens, position) for position in range(len(tokens))]
    (link,) = [link for link in found if link]
    assert (link.text, link.target) == (text, target)
    assert GPT2.decode(link.link_text_tokens) == text
    assert GPT2.decode(link.target_tokens) == target
    assert b")" in GPT2.token_bytes(tokens[link.paren_close_pos])
    assert b"[" in GPT2.token_bytes(tokens[link.bracket_open_pos])


def test_tokens_in_every_container() -> None:
    tokens = GPT2.encode("[a](b)")
    end = len(tokens) - 1
    expected = DETECTOR.detect_link_at_position(tokens, end)
    assert expected is not None
    for form in (
        tuple(tokens),
        np.array(tokens, dtype=np.uint16),
        np.array([tokens]),
        torch.tensor(tokens),
        torch.tensor([tokens]),
        [tokens],
    ):
        assert DETECTOR.detect_link_at_position(form, end) == expected


@pytest.mark.parametrize("end_pos", [-1, 3, 100])
def test_end_pos_out_of_range(end_pos: int) -> None:
    with pytest.raises(ValueError, match=rf"end_pos must be in \[0, 3\), got {end_pos}"):
        DETECTOR.detect_link_at_position([58, 58, 8], end_pos)


def test_bad_tokens() -> None:
    with pytest.raises(ValueError, match=r"end_pos must be in \[0, 0\)"):
        DETECTOR.detect_link_at_position([], 0)
    with pytest.raises(ValueError, match=r"shape \[T\] or \[1, T\], got 2 rows"):
        DETECTOR.detect_link_at_position(np.zeros((2, 3), dtype=np.int64), 0)
    with pytest.raises(ValueError, match="token id -1 is not in the vocabulary of gpt2"):
        DETECTOR.stream().feed(-1)
    for token in (50257, 2**40):  # of a padded vocabulary: no text
        assert DETECTOR.stream().feed(token) == []


def test_eos_ends_a_document() -> None:
    eos = LinkDetector.EOS
    tokens = [*GPT2.encode("[a"), eos, *GPT2.encode("](b) `"), eos, *GPT2.encode("[c](d)")]
    found = [DETECTOR.detect_link_at_position(tokens, position) for position in range(len(tokens))]
    (link,) = [link for link in found if link]
    assert link.target == "d"
    assert link.bracket_open_pos == tokens.index(eos, 4) + 1
    stream = DETECTOR.stream()
    assert [link.target for token in tokens for link in stream.feed(token)] == ["d"]


def test_text_that_looks_like_eos_is_text() -> None:
    tokens = GPT2.encode("[a](<|endoftext|>)")
    stream = DETECTOR.stream()
    assert [link.target for token in tokens for link in stream.feed(token)] == ["|endoftext|"]


def test_last_of_several_links_in_one_token() -> None:
    words = {0: b"[a", 1: b"](b)[c](d)", 2: b"x"}
    tokenizer = Tokenizer(
        encode=lambda text: [2] * len(text),
        decode=lambda ids: b"".join(words[i] for i in ids).decode(),
        token_bytes=words.__getitem__,
    )
    detector = LinkDetector(tokenizer)
    link = detector.detect_link_at_position([0, 1], 1)
    assert link is not None
    assert (link.target, link.bracket_open_pos, link.target_tokens) == ("d", 1, [2])
    stream = detector.stream()
    stream.feed(0)
    assert [link.target for link in stream.feed(1)] == ["b", "d"]


def test_streams_are_independent() -> None:
    first, second = DETECTOR.stream(), DETECTOR.stream()
    for token in GPT2.encode("[a](b"):
        first.feed(token)
    assert second.feed(LinkDetector.CLOSE_PAREN) == []
    assert [link.target for link in first.feed(LinkDetector.CLOSE_PAREN)] == ["b"]


@given(st.lists(st.sampled_from(["[", "](", ")", " a", "é", "🦉", "\\", "`", "\n", "[b](c d)", " [x](y)", "!", "<"])))
def test_stream_and_positions_agree_with_the_bytes(parts: list[str]) -> None:
    text = "".join(parts)
    tokens = GPT2.encode(text)
    stream = DETECTOR.stream()
    by_token = [stream.feed(token) for token in tokens]
    assert [link for links in by_token for link in links] == LinkScanner().feed(text.encode())
    for position, links in enumerate(by_token):
        detected = DETECTOR.detect_link_at_position(tokens, position)
        assert (detected and detected.target) == (links[-1].target if links else None)


def test_import_is_light() -> None:
    code = "import sys, ds2ds.documents.link_detector; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
