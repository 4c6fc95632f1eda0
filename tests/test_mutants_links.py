"""Links where mutation testing found no test: docs/mutation.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ds2ds.documents.link_detector import DetectedLink, LinkDetector
from ds2ds.documents.link_scanner import LinkScanner, ScannedLink, is_external
from ds2ds.errors import ConfigError
from ds2ds.tokenizer import Tokenizer


def targets(text: str) -> list[str]:
    return [link.target for link in LinkScanner().feed(text.encode())]


def test_a_quoted_string_in_the_middle_of_a_destination_is_part_of_it() -> None:
    assert targets('[a](b "c" (d) e)') == ['b "c" (d) e']
    assert targets('[a](b "c" (d))') == ['b "c" (d)']
    assert targets('[a](b "c" d (e) f)') == ['b "c" d (e) f']


def test_a_tab_stands_before_a_title_too() -> None:
    assert targets('[a](b\t"t") [a](<b>\t"t")') == ["b", "b"]


def test_characters_by_number_of_any_length() -> None:
    assert targets("[a](&#1114109;) [a](&#x10FFFD;) [a](&#X10fffd;)") == ["\U0010fffd"] * 3
    assert targets("[a](&#X42;&#x42;&#66;)") == ["BBB"]


def test_of_two_quoted_strings_the_last_is_the_title() -> None:
    assert targets('[a](b "c" d "t")') == ['b "c" d']
    assert targets("""[a](b "c" d 't')""") == ['b "c" d']


def test_a_line_of_one_bracket_is_not_blank() -> None:
    assert targets("[\na](b)") == ["b"]


def test_a_blank_line_ends_a_paragraph_wherever_its_text_began() -> None:
    scanner = LinkScanner()
    assert scanner.feed(b"some words. ") == []
    assert scanner.feed(b"[a\n\nb](c) and more words") == []


def test_after_a_fence_text_is_text_again() -> None:
    assert targets("```\nx\n```\n`y` [a](b)") == ["b"]
    assert targets("```\nx\n```\n[a\n\nb](c)") == []


def test_after_a_reset_the_next_byte_starts_a_line() -> None:
    scanner = LinkScanner()
    scanner.feed(b"words [a")
    scanner.reset()
    assert [link.target for link in scanner.feed(b"```\n[b](c)\n\n[d](e)\n```\n[f](g)")] == ["g"]


@pytest.mark.parametrize("closed", ["[a\n\n", "`a\n \n", "[a](b\n\n", "\\`", "[a](b)", "![a](b)", "[a] b"])
def test_what_is_closed_is_let_go(closed: str) -> None:
    scanner = LinkScanner()
    scanner.feed(closed.encode())
    assert not scanner._buffer


def test_a_fence_is_at_least_three_backticks_that_start_a_line_even_byte_by_byte() -> None:
    for source, expected in (
        (b"x\n```\n[a](b)\n\n[c](d)\n```\n[e](f)", ["f"]),
        (b"``\n[a](b)\n\n[c](d)", ["d"]),
    ):
        scanner = LinkScanner()
        assert [link.target for byte in source for link in scanner.feed(bytes([byte]))] == expected


def test_a_scheme_may_be_one_letter() -> None:
    assert is_external("x://y")


def test_a_link_means_the_first_candidate_that_exists_or_else_its_target() -> None:
    link = ScannedLink("a", "c", 0, 6, 2, candidates=("a", "b", "c"))
    assert link.choose({"b", "c"}.__contains__) == "b"
    assert link.choose({"x"}.__contains__) == "c"
    assert ScannedLink("a", "c", 0, 6, 2).candidates == ()
    assert ScannedLink("a", "c", 0, 6, 2).choose({"a"}.__contains__) == "c"


# The detector


def byte_tokenizer(**settings: object) -> Tokenizer:
    """A token a byte, of 128."""
    alphabet = [bytes([byte]) for byte in range(128)]
    defaults = {
        "encode": lambda text: list(text.encode()),
        "decode": lambda ids: bytes(ids).decode(),
        "token_bytes": alphabet.__getitem__,
        "name": "bytes",
    }
    return Tokenizer(**{**defaults, **settings})  # type: ignore[arg-type]


def test_a_token_that_the_vocabulary_lacks_is_named() -> None:
    with pytest.raises(ValueError) as error:
        LinkDetector(byte_tokenizer()).stream().feed(128)
    assert str(error.value) == "token id 128 is not in the vocabulary of bytes"


def test_detection_at_a_position_is_for_markdown() -> None:
    with pytest.raises(ConfigError) as error:
        LinkDetector(byte_tokenizer(), "wikilinks").detect_link_at_position([1], 0)
    assert str(error.value) == (
        "detect_link_at_position finds markdown links, this detector's format is 'wikilinks': "
        "feed the tokens to stream()"
    )


@pytest.mark.parametrize("tokens", [[[1, 2], [3, 4]], np.zeros((2, 2), dtype=int), torch.zeros(2, 2)])
def test_more_than_one_row_of_tokens(tokens: object) -> None:
    with pytest.raises(ValueError) as error:
        LinkDetector(byte_tokenizer()).detect_link_at_position(tokens, 0)
    assert str(error.value) == "tokens must have the shape [T] or [1, T], got 2 rows"


@pytest.mark.parametrize(("end_pos", "length"), [(3, 3), (-1, 3), (0, 0)])
def test_a_position_outside_of_the_tokens(end_pos: int, length: int) -> None:
    with pytest.raises(ValueError) as error:
        LinkDetector(byte_tokenizer()).detect_link_at_position([1] * length, end_pos)
    assert str(error.value) == f"end_pos must be in [0, {length}), got {end_pos}"


def test_positions_of_a_link_byte_by_byte() -> None:
    text = "x [ab](cd) y"
    found = LinkDetector(byte_tokenizer()).detect_link_at_position(list(text.encode()), text.index(")"))
    assert found == DetectedLink(2, 5, 6, 9, list(b"ab"), list(b"cd"), "ab", "cd")


def test_tokens_between_the_brackets_are_those_that_stand_there() -> None:
    """Not the text encoded anew, which may be other tokens."""
    tokenizer = byte_tokenizer(encode=lambda text: [0])
    found = LinkDetector(tokenizer).detect_link_at_position(list(b"[abc](defg)"), 10)
    assert found is not None
    assert (found.link_text_tokens, found.target_tokens) == (list(b"abc"), list(b"defg"))


def test_an_end_of_document_that_has_bytes_takes_no_room() -> None:
    detector = LinkDetector(byte_tokenizer(eos_token_id=0))
    found = detector.detect_link_at_position([*b"x", 0, *b"[a](b)"], 7)
    assert found is not None
    assert (found.bracket_open_pos, found.bracket_close_pos, found.paren_close_pos) == (2, 4, 7)


def test_what_follows_the_position_does_not_matter() -> None:
    detector = LinkDetector(byte_tokenizer())
    tokens = [*b"[a](b) [c](d)", 500, 600]  # the last are in no vocabulary
    first, second = detector.detect_link_at_position(tokens, 5), detector.detect_link_at_position(tokens, 12)
    assert first is not None and (first.text, first.target) == ("a", "b")
    assert second is not None and (second.bracket_open_pos, second.target) == (7, "d")
    assert detector.detect_link_at_position(tokens, 4) is None


def test_a_stream_resolves_relative_links_against_the_document_it_reads() -> None:
    detector = LinkDetector(byte_tokenizer(), "python")
    source = b"from . import b\n"
    streams = {title: detector.stream(title) for title in ("pkg/a.py", "other/a.py")}
    found = {title: [link for byte in source for link in stream.feed(byte)] for title, stream in streams.items()}
    assert all(found.values())
    assert found["pkg/a.py"][0].candidates != found["other/a.py"][0].candidates


def test_a_stream_is_of_an_untitled_document_unless_told() -> None:
    titles = []

    class Own:
        name = "own"

        def scanner(self, document_title: str) -> LinkScanner:
            titles.append(document_title)
            return LinkScanner()

    detector = LinkDetector(byte_tokenizer(), Own())
    detector.stream()
    detector.stream("a.py")
    assert titles == ["", "a.py"]
