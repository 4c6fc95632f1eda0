"""Which documents are resident: reserving, trimming, eviction, compaction, and what the books must say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_cache import DocumentCache
from ds2ds.cache.extents import Extent
from ds2ds.documents.document import Document
from ds2ds.errors import ArenaFullError

BLOCK = 4


def make(blocks: int) -> DocumentCache:
    return DocumentCache(KVArena(1, 1, 4, blocks * BLOCK, BLOCK))


def document(title: str, blocks: int = 1, in_progress: bool = False) -> Document:
    """A complete document that fills its blocks, or an empty one that may come to."""
    if in_progress:
        return Document(title, [], capacity=blocks * BLOCK)
    return Document(title, [0] * (blocks * BLOCK))


def fill(cache: DocumentCache, *documents: Document) -> None:
    """Reserve, and write every document's own mark into its slots."""
    for held in documents:
        cache.reserve(held, set(documents))
        cache.arena.data[..., cache.start(held) : cache.start(held) + len(held.tokens), :] = mark(held)
        held.computed = len(held.tokens)


def mark(held: Document) -> float:
    return float(sum(map(ord, held.title)))


def is_intact(cache: DocumentCache, held: Document) -> bool:
    start = cache.start(held)
    return bool((cache.arena.data[..., start : start + len(held.tokens), :] == mark(held)).all())


def residents(cache: DocumentCache, *documents: Document) -> str:
    return "".join(held.title for held in documents if cache.is_resident(held))


def test_a_document_that_is_not_resident_has_no_slot() -> None:
    cache, a = make(2), document("a")
    assert not cache.is_resident(a)
    with pytest.raises(KeyError):
        cache.start(a)


@pytest.mark.parametrize(("tokens", "slots"), [(0, 4), (1, 4), (4, 4), (5, 8)])
def test_a_complete_document_takes_what_its_tokens_need(tokens: int, slots: int) -> None:
    cache, held = make(4), Document("a", [0] * tokens)
    cache.reserve(held, set())
    assert cache.is_resident(held)
    assert cache.arena.allocator.used == slots
    cache.check_integrity()


def test_a_document_in_progress_takes_its_capacity_and_gives_the_rest_back() -> None:
    cache, held = make(8), Document("a", [0] * 3, capacity=25)
    cache.reserve(held, set())
    assert cache.arena.allocator.used == 28
    cache.trim(held)
    assert cache.arena.allocator.used == 28  # still being written
    held.tokens.extend([0] * 3)
    held.capacity = None
    cache.trim(held)
    assert cache.arena.allocator.used == 8
    cache.trim(held)
    assert cache.arena.allocator.used == 8
    cache.check_integrity()


def test_reserving_twice_changes_nothing() -> None:
    cache, a, b = make(4), document("a"), document("b")
    fill(cache, a, b)
    start = cache.start(a)
    cache.reserve(a, set())
    assert (cache.start(a), cache.arena.allocator.used) == (start, 2 * BLOCK)
    assert is_intact(cache, a)


def test_documents_are_told_apart_by_identity() -> None:
    cache, one, other = make(4), document("same"), document("same")
    fill(cache, one)
    assert not cache.is_resident(other)
    cache.reserve(other, set())
    assert cache.start(one) != cache.start(other)


def test_freeing_forgets_what_was_computed() -> None:
    cache, a = make(2), document("a")
    fill(cache, a)
    assert a.computed == BLOCK
    cache.free(a)
    assert a.computed == 0
    assert not cache.is_resident(a)
    assert cache.arena.allocator.used == 0
    cache.free(a)  # no effect
    cache.trim(a)
    cache.check_integrity()


def test_the_oldest_unpinned_documents_go_first() -> None:
    cache = make(4)
    a, b, c, d = (document(title) for title in "abcd")
    fill(cache, a, b, c, d)
    e = document("e", 2)
    cache.reserve(e, pinned={a, e})
    assert residents(cache, a, b, c, d, e) == "ade"
    assert (a.computed, b.computed, c.computed, d.computed) == (BLOCK, 0, 0, BLOCK)
    cache.check_integrity()


def test_no_more_is_evicted_than_is_needed() -> None:
    cache, a, b, c = make(4), document("a", 2), document("b"), document("c")
    fill(cache, a, b)
    cache.reserve(c, set())
    assert residents(cache, a, b, c) == "abc"
    d = document("d")
    cache.reserve(d, set())
    assert residents(cache, a, b, c, d) == "bcd"
    assert cache.arena.allocator.free == BLOCK


def test_documents_in_progress_stay_even_unpinned() -> None:
    cache, writing, old = make(3), document("w", 2, in_progress=True), document("o")
    cache.reserve(writing, set())
    fill(cache, old)
    cache.reserve(document("n"), set())
    assert residents(cache, writing, old) == "w"
    with pytest.raises(ArenaFullError):
        cache.reserve(document("m", 2), set())
    assert cache.is_resident(writing)


def test_a_fragmented_arena_is_compacted_and_documents_keep_their_content() -> None:
    cache = make(5)
    a, b, c, d, e = (document(title) for title in "abcde")
    fill(cache, a, b, c, d, e)
    cache.free(a)
    cache.free(c)
    wide = document("w", 2)
    cache.reserve(wide, pinned={b, d, e})
    assert [cache.start(held) // BLOCK for held in (b, d, e, wide)] == [0, 1, 2, 3]
    assert all(is_intact(cache, held) for held in (b, d, e))
    assert [held.computed for held in (b, d, e)] == [BLOCK] * 3
    cache.check_integrity()


def test_nothing_moves_while_a_gap_suffices() -> None:
    cache = make(4)
    a, b, c = document("a"), document("b"), document("c")
    fill(cache, a, b, c)
    cache.free(b)
    cache.reserve(document("d"), pinned={a, c})
    assert cache.start(c) == 2 * BLOCK


def test_a_full_arena_says_how_full_and_evicts_nothing() -> None:
    cache = make(8)
    pinned, loose, writing = document("p", 3), document("l", 2), document("w", 1, in_progress=True)
    fill(cache, pinned, loose)
    cache.reserve(writing, set())
    too_long = Document("Too long", [0] * 17)
    with pytest.raises(ArenaFullError) as raised:
        cache.reserve(too_long, {pinned})
    message = str(raised.value)
    # 17 tokens take 20 slots; 8 are free and 8 can be freed of 32.
    assert "'Too long' needs 20 slots" in message
    assert "16 of 32" in message
    assert "arena_tokens" in message
    assert residents(cache, pinned, loose, writing) == "plw"
    assert is_intact(cache, loose)
    cache.reserve(Document("Just fits", [0] * 16), {pinned})
    assert residents(cache, pinned, loose, writing) == "pw"


def test_integrity_of_a_sound_cache() -> None:
    cache = make(4)
    cache.check_integrity()
    fill(cache, document("a"), document("b", 2))
    cache.check_integrity()


def test_integrity_finds_a_leaked_extent() -> None:
    cache = make(4)
    fill(cache, document("a"))
    cache.arena.allocator.allocate(1)
    with pytest.raises(RuntimeError, match="2 extents for 1 documents"):
        cache.check_integrity()


def test_integrity_finds_a_document_whose_extent_was_released() -> None:
    cache, a = make(4), document("a")
    fill(cache, a)
    cache.arena.allocator.release(cache._extents[a])
    with pytest.raises(RuntimeError, match="0 extents for 1 documents"):
        cache.check_integrity()


def test_integrity_finds_an_extent_that_is_not_the_documents() -> None:
    """One extent is leaked and one is shared: the numbers agree, the extents do not."""
    cache, a, b = make(4), document("a"), document("b")
    fill(cache, a, b)
    cache._extents[a] = cache._extents[b]
    with pytest.raises(RuntimeError, match="not one for each"):
        cache.check_integrity()


def test_integrity_finds_more_tokens_than_slots() -> None:
    cache, a = make(4), document("a")
    fill(cache, a)
    a.computed = BLOCK + 1
    with pytest.raises(RuntimeError, match=f"'a' has {BLOCK + 1} tokens in {BLOCK} slots"):
        cache.check_integrity()


def test_integrity_finds_overlapping_extents() -> None:
    cache = make(4)
    fill(cache, document("a"))
    cache.arena.allocator.extents.append(Extent(0, BLOCK))
    with pytest.raises(RuntimeError, match="overlaps"):
        cache.check_integrity()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans()), max_size=25), st.data())
def test_random_use_keeps_the_books_and_every_resident_document(
    steps: list[tuple[int, int, bool]], data: st.DataObject
) -> None:
    cache = make(8)
    known: list[Document] = []
    for index, (blocks, pins, frees) in enumerate(steps):
        resident = [held for held in known if cache.is_resident(held)]
        if frees and resident:
            cache.free(data.draw(st.sampled_from(resident)))
        else:
            pinned = set(resident[-pins:]) if pins else set()
            new = document(f"d{index}", blocks)
            room = 8 - sum(len(held.tokens) // BLOCK for held in pinned)
            if blocks > room:
                with pytest.raises(ArenaFullError):
                    cache.reserve(new, pinned)
                assert [held for held in known if cache.is_resident(held)] == resident
            else:
                cache.reserve(new, pinned)
                stays = [held for held in resident if cache.is_resident(held)]
                assert pinned <= set(stays)
                gone = [held for held in resident if held not in stays]
                unpinned = [held for held in resident if held not in pinned]
                assert gone == unpinned[: len(gone)]  # oldest first
                cache.arena.data[..., cache.start(new) : cache.start(new) + len(new.tokens), :] = mark(new)
                new.computed = len(new.tokens)
                known.append(new)
        cache.check_integrity()
        for held in known:
            if cache.is_resident(held):
                assert is_intact(cache, held)
                assert held.computed == len(held.tokens)
            else:
                assert held.computed == 0
