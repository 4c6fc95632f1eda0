"""The store: who is resident, what is shared, what goes when room is needed, and what the books must say."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.entry import Entry
from ds2ds.cache.extents import Extent
from ds2ds.cache.retention import GreedyDualSizeFrequency, LeastRecentlyUsed
from ds2ds.documents.content import content_of
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.errors import ArenaFullError

BLOCK = 4
READER = Document("reader", [])  # stands for whatever links to a document, and makes it another than a root


def make(blocks: int, share: bool = True) -> DocumentStore:
    return DocumentStore(KVArena(1, 1, 4, blocks * BLOCK, BLOCK), LeastRecentlyUsed(), share)


def document(title: str, blocks: int = 1, text: str | None = None) -> Document:
    """A complete document that fills its blocks. Its content is its title, or else the text."""
    return Document(title, [ord(letter) for letter in text or title] * (blocks * BLOCK), parent=READER)


def draft(title: str, blocks: int = 1, tokens: Iterable[int] = ()) -> Document:
    """A document in progress that may come to fill its blocks."""
    return Document(title, list(tokens), capacity=blocks * BLOCK, parent=READER)


def root(prompt: Iterable[int], blocks: int = 4) -> Document:
    return Document("root", list(prompt), capacity=blocks * BLOCK)


def pins(*pinned: Document) -> Callable[[], set[Document]]:
    return lambda: set(pinned)


def never() -> set[Document]:
    raise AssertionError("nobody needs to know what is pinned where there is room")


def compute(store: DocumentStore, held: Document, stop: int | None = None, seconds: float | None = 1.0) -> None:
    """Write the document's own mark into the slots of its tokens that are not computed yet."""
    stop = len(held.tokens) if stop is None else stop
    base = store.start(held)
    store.arena.data[..., base + store.computed(held) : base + stop, :] = mark(held)
    store.advance(held, stop, seconds)


def fill(store: DocumentStore, *documents: Document) -> None:
    for held in documents:
        store.reserve(held, pins(*documents))
        compute(store, held)


def mark(held: Document) -> float:
    return float(sum(held.tokens[:BLOCK]))


def is_intact(store: DocumentStore, held: Document) -> bool:
    start = store.start(held)
    return bool((store.arena.data[..., start : start + store.computed(held), :] == mark(held)).all())


def residents(store: DocumentStore, *documents: Document) -> str:
    return "".join(held.title for held in documents if store.entry(held) is not None)


def used(store: DocumentStore) -> int:
    """Blocks, after a look at all the books."""
    store.check_integrity()
    return store.arena.allocator.used // BLOCK


# Room


def test_a_document_that_is_not_resident_has_no_slot() -> None:
    store, a = make(2), document("a")
    assert store.entry(a) is None and store.computed(a) == 0 and store.documents() == []
    with pytest.raises(KeyError):
        store.start(a)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 1), (1, 1), (4, 1), (5, 2)])
def test_a_complete_document_takes_what_its_tokens_need(tokens: int, blocks: int) -> None:
    store, held = make(4), Document("a", [0] * tokens)
    store.reserve(held, never)
    assert store.documents() == [held] and store.computed(held) == 0
    assert used(store) == blocks


def test_a_document_in_progress_takes_its_capacity_and_gives_the_rest_back() -> None:
    store, held = make(8), Document("a", [0] * 3, capacity=25)
    store.reserve(held, never)
    assert used(store) == 7
    store.complete(held)
    assert used(store) == 7  # still being written
    held.tokens.extend([0] * 3)
    held.capacity = None
    store.complete(held)
    assert used(store) == 2
    store.complete(held)
    assert used(store) == 2


def test_completing_what_is_not_resident_or_was_complete_has_no_effect() -> None:
    store, a, b = make(4), document("a"), document("b")
    fill(store, a)
    entry = store.entry(a)
    before = entry and (entry.cost, entry.uses, entry.key)
    store.complete(a)
    store.complete(b)
    assert entry is store.entry(a) and before == (entry.cost, entry.uses, entry.key)
    assert residents(store, a, b) == "a" and used(store) == 1


def test_reserving_twice_changes_nothing() -> None:
    store, a, b = make(2), document("a"), document("b")
    fill(store, a, b)
    start = store.start(a)
    store.reserve(a, never)
    assert (store.start(a), store.computed(a), used(store)) == (start, BLOCK, 2)
    assert is_intact(store, a)


def test_documents_of_one_title_are_told_apart() -> None:
    store, one, other = make(4), document("same", text="x"), document("same", text="y")
    fill(store, one)
    assert store.entry(other) is None and store.attach(other) is None
    store.reserve(other, never)
    assert store.start(one) != store.start(other)


def test_the_cheapest_unpinned_documents_go_first() -> None:
    store = make(4)
    a, b, c, d = (document(title) for title in "abcd")
    fill(store, a, b, c, d)
    e = document("e", 2)
    store.reserve(e, pins(a, e))
    assert residents(store, a, b, c, d, e) == "ade"
    assert [store.computed(held) for held in (a, b, c, d, e)] == [BLOCK, 0, 0, BLOCK, 0]
    assert used(store) == 4


def test_what_no_document_uses_goes_as_what_one_uses_does() -> None:
    """By worth alone; who reads is pinned."""
    store, a, b, c = make(2), document("a"), document("b"), document("c")
    fill(store, a, b)
    store.release(b)
    store.reserve(c, pins())
    assert residents(store, a) == "" and store.attach(b) == BLOCK


def test_a_use_and_progress_make_a_document_the_latest() -> None:
    store = make(3)
    a, b, c = (document(title) for title in "abc")
    for held in (a, b, c):
        store.reserve(held, never)
    compute(store, a)
    store.attach(document("b2", text="b"))
    assert [entry.documents for entry in store.retention.cheapest_first()][:2] == [{c}, {a}]


def test_no_more_is_dropped_than_is_needed() -> None:
    store, a, b, c = make(4), document("a", 2), document("b"), document("c")
    fill(store, a, b)
    store.reserve(c, never)
    assert residents(store, a, b, c) == "abc"
    d = document("d")
    store.reserve(d, pins())
    assert residents(store, a, b, c, d) == "bcd"
    assert used(store) == 3


def test_documents_in_progress_stay_even_unpinned() -> None:
    store, writing, old = make(3), draft("w", 2), document("o")
    store.reserve(writing, never)
    fill(store, old)
    store.reserve(document("n"), pins())
    assert residents(store, writing, old) == "w"
    with pytest.raises(ArenaFullError):
        store.reserve(document("m", 2), pins())
    assert residents(store, writing) == "w"


def test_one_pinned_document_holds_what_others_share() -> None:
    store, a, twin, b = make(2), document("a"), document("twin", text="a"), document("b")
    fill(store, a, b)
    store.attach(twin)
    store.reserve(document("c"), pins(twin))
    assert residents(store, a, twin, b) == "atwin"
    with pytest.raises(ArenaFullError):
        store.reserve(document("d", 2), pins(a))
    store.reserve(document("d", 2), pins())
    assert residents(store, a, twin, b) == ""


def test_a_full_arena_says_how_full_and_drops_nothing() -> None:
    store = make(8)
    pinned, loose, writing = document("p", 3), document("l", 2), draft("w", 1)
    fill(store, pinned, loose)
    store.reserve(writing, never)
    too_long = Document("Too long", [0] * 17)
    with pytest.raises(ArenaFullError) as raised:
        store.reserve(too_long, pins(pinned))
    # 17 tokens take 20 slots; 8 are free and 8 can be freed of 32.
    assert "'Too long' needs 20 slots of the KV arena; 16 of 32 can be had" in str(raised.value)
    assert "arena_tokens" in str(raised.value)
    assert residents(store, pinned, loose, writing, too_long) == "plw"
    assert is_intact(store, loose) and used(store) == 6
    store.reserve(Document("Just fits", [0] * 16), pins(pinned))
    assert residents(store, pinned, loose, writing) == "pw"


# Compaction


def test_nothing_moves_while_a_gap_suffices() -> None:
    store = make(4)
    a, b, c = (document(title) for title in "abc")
    fill(store, a, b, c)
    store.use_weights(b"others")  # what is released now is gone
    store.release(b)
    store.reserve(document("d"), never)
    assert store.start(c) == 2 * BLOCK


def test_a_fragmented_arena_is_compacted_and_documents_keep_their_content() -> None:
    store = make(5)
    a, b, c, d, e = (document(title) for title in "abcde")
    fill(store, a, b, c, d, e)
    store.use_weights(b"others")
    store.release(a)
    store.release(c)
    wide = document("w", 2)
    store.reserve(wide, pins(b, d, e))
    assert [store.start(held) // BLOCK for held in (b, d, e, wide)] == [0, 1, 2, 3]
    assert all(is_intact(store, held) for held in (b, d, e))
    assert [store.computed(held) for held in (b, d, e)] == [BLOCK] * 3
    assert used(store) == 5


def fragmented() -> tuple[DocumentStore, list[Document]]:
    """32 blocks, each second one free, and the others held by documents a, b, c, ..., the oldest first."""
    store = make(32)
    held = [document(letter) for letter in "abcdefghijklmnopqrstuvwxyzABCDEF"]
    fill(store, *held)
    for gone in held[1::2]:
        entry = store.entry(gone)
        assert entry is not None
        del store._by_key[entry.key or b""]
        entry.key = None
        store.release(gone)
    assert used(store) == 16
    return store, held[::2]


def test_before_a_compaction_more_is_dropped_so_that_its_gap_serves_others_too() -> None:
    """15 blocks, where 16 are free in gaps of one. 32 blocks / SLACK are 2 more than needed: the one oldest goes."""
    store, held = fragmented()
    store.reserve(document("w", 15), pins(*held[2:]))
    assert residents(store, *held) == "cegikmoqsuwyACE"
    assert all(is_intact(store, left) for left in held[1:])
    assert [store.start(left) // BLOCK for left in held[1:]] == list(range(15))
    assert used(store) == 30


def test_slack_takes_nothing_that_is_pinned() -> None:
    store, held = fragmented()
    store.reserve(document("w", 16), pins(*held))
    assert residents(store, *held) == "acegikmoqsuwyACE"
    assert all(is_intact(store, left) for left in held)
    assert used(store) == 32


def test_a_document_that_gets_a_gap_after_drops_costs_no_compaction_and_no_slack() -> None:
    store = make(32)
    held = [document(letter, 8) for letter in "abcd"]
    fill(store, *held)
    store.reserve(document("w", 8), pins())
    assert residents(store, *held) == "bcd"
    assert [store.start(left) // BLOCK for left in held[1:]] == [8, 16, 24]


# Sharing


def test_documents_of_one_content_share_one_copy_whatever_their_titles() -> None:
    store, a, other = make(4), document("a", 2), document("another", 2, text="a")
    fill(store, a)
    assert store.attach(other) == 2 * BLOCK
    assert store.entry(other) is store.entry(a)
    assert store.start(other) == store.start(a) and store.computed(other) == 2 * BLOCK
    assert is_intact(store, other) and used(store) == 2
    assert set(store.documents()) == {a, other}


def test_what_it_reads_is_part_of_a_content() -> None:
    store, targets = make(8), [document("x"), document("y"), document("x2", text="x")]

    def reader(target: Document, position: int = 1, end: int | None = None) -> Document:
        return Document("r", [7] * BLOCK, grants=[DocumentGrant(position, target, end)])

    fill(store, reader(targets[0]))
    assert store.attach(reader(targets[2])) == BLOCK
    for other in (reader(targets[1]), reader(targets[0], 2), reader(targets[0], 1, 3), Document("r", [7] * BLOCK)):
        assert store.attach(other) is None


def test_attaching_finds_nothing_for_what_is_unknown_in_progress_or_there_already() -> None:
    store, a = make(4), document("a")
    fill(store, a)
    assert store.attach(document("b")) is None
    assert store.attach(Document("draft", list(a.tokens), capacity=BLOCK)) is None
    assert store.attach(a) is None
    entry = store.entry(a)
    assert entry is not None and entry.uses == 1 and entry.documents == {a}


def test_a_partly_computed_document_is_shared_and_either_takes_it_further() -> None:
    """The first reserves, and whoever comes finds as much as there is: prefill is shared while it goes on."""
    store, a, twin = make(4), document("a", 2), document("twin", 2, text="a")
    store.reserve(a, never)
    assert store.attach(twin) == 0
    compute(store, a, 3)
    assert store.computed(twin) == 3
    compute(store, twin, 5)
    assert store.computed(a) == 5
    third = document("third", 2, text="a")
    assert store.attach(third) == 5
    assert is_intact(store, third) and used(store) == 2


def test_progress_settles_the_document_that_made_it_for_good() -> None:
    """What computed tokens have read stays as it was, even where they are gone and will be computed anew (S4)."""
    store, writing = make(4), draft("w", 2, [1] * 6)
    store.reserve(writing, never)
    compute(store, writing, 3)
    compute(store, writing, 5)
    store.release(writing)
    assert (store.computed(writing), writing.settled) == (0, 5)
    store.reserve(writing, never)
    compute(store, writing, 2)
    assert (store.computed(writing), writing.settled) == (2, 5)


def test_a_written_document_is_shared_once_it_is_complete() -> None:
    store, written, twin = make(8), draft("w", 4, [5] * 6), Document("twin", [5] * 6)
    store.reserve(written, never)
    compute(store, written, 5)
    assert store.attach(twin) is None and store.shared() == []
    written.capacity = None
    store.complete(written)
    assert store.attach(twin) == 5
    assert store.shared() == [store.entry(written)] == [store.entry(twin)]
    assert used(store) == 2


@pytest.mark.parametrize("computed", [3, 6])
def test_equal_written_documents_come_to_share_one_entry_and_the_others_room_is_given_back(computed: int) -> None:
    store = make(8)
    first, second = draft("one", 4, [5] * 6), draft("two", 4, [5] * 6)
    for writing, stop in ((first, 6), (second, computed)):
        store.reserve(writing, never)
        compute(store, writing, stop)
    assert used(store) == 8
    first.capacity = None
    store.complete(first)
    assert used(store) == 6
    second.capacity = None
    store.complete(second)
    assert store.entry(second) is store.entry(first)
    assert store.computed(second) == 6 and is_intact(store, second)
    assert used(store) == 2


def test_a_written_document_keeps_its_own_entry_where_it_is_further_than_the_known_one() -> None:
    """Nothing computed is lost, and who uses the known entry goes on with it."""
    store = make(8)
    known, written = Document("known", [5] * 6), draft("w", 4, [5] * 6)
    store.reserve(known, never)
    compute(store, known, 2)
    store.reserve(written, never)
    compute(store, written, 4)
    written.capacity = None
    store.complete(written)
    assert (store.computed(known), store.computed(written)) == (2, 4)
    assert is_intact(store, known) and is_intact(store, written)
    assert used(store) == 4
    store.release(written)
    assert used(store) == 2 and store.shared() == [store.entry(known)]


def test_an_equal_document_that_did_not_attach_has_an_entry_that_goes_with_it() -> None:
    store, a, twin = make(4), document("a"), document("twin", text="a")
    fill(store, a, twin)
    assert store.entry(a) is not store.entry(twin) and used(store) == 2
    store.release(twin)
    assert used(store) == 1 and store.attach(twin) == BLOCK


def test_without_sharing_every_document_has_its_own_entry_and_takes_it_along() -> None:
    store = make(8, share=False)
    a, twin = document("a"), document("twin", text="a")
    fill(store, a)
    assert store.attach(twin) is None and store.shared() == []
    fill(store, twin)
    writing = draft("w", 2, a.tokens)
    store.reserve(writing, never)
    compute(store, writing)
    writing.capacity = None
    store.complete(writing)
    assert len({store.start(held) for held in (a, twin, writing)}) == 3 and used(store) == 3
    assert store.insert(content_of(document("b")), 1.0, 1) is None
    store.release(a)
    assert used(store) == 2
    store.reserve(document("b", 6), pins())  # they may still go for lack of room
    assert residents(store, twin, writing) == "w"


# Releasing and clearing


def test_a_released_document_stays_to_be_found_again() -> None:
    store, a = make(2), document("a")
    fill(store, a)
    start = store.start(a)
    store.release(a)
    assert store.entry(a) is None and store.documents() == [] and used(store) == 1
    store.release(a)  # no effect
    again = document("again", text="a")
    assert store.attach(again) == BLOCK
    assert store.start(again) == start and is_intact(store, again)


def test_a_partly_computed_document_stays_too() -> None:
    store, a = make(2), document("a", 2)
    store.reserve(a, never)
    compute(store, a, 3)
    store.release(a)
    assert used(store) == 2 and store.attach(document("a", 2)) == 3


def test_what_is_of_no_use_to_others_goes_when_it_is_released() -> None:
    store = make(8)
    uncomputed, writing, complete = document("u"), draft("w", 2, [1] * 3), draft("c", 2, [1] * 3)
    for held in (uncomputed, writing, complete):
        store.reserve(held, never)
    compute(store, writing)
    compute(store, complete)
    complete.capacity = None  # and the store was never told
    for held, blocks in ((uncomputed, 4), (writing, 2), (complete, 0)):
        store.release(held)
        assert store.arena.allocator.used // BLOCK == blocks
    store.check_integrity()
    assert store.shared() == [] and list(store.retention.cheapest_first()) == []


def test_an_entry_stays_while_one_document_uses_it() -> None:
    store, a, twin = make(2), document("a"), document("twin", text="a")
    store.reserve(a, never)
    store.attach(twin)
    store.release(a)
    assert used(store) == 1 and residents(store, twin) == "twin"
    store.release(twin)
    assert used(store) == 0  # nothing of it was computed


def test_clearing_drops_what_no_document_uses() -> None:
    store, a, b = make(4), document("a"), document("b")
    fill(store, a, b)
    store.release(b)
    store.clear()
    assert used(store) == 1 and is_intact(store, a)
    assert store.attach(document("b")) is None and store.attach(document("a2", text="a")) == BLOCK
    store.release(a)
    store.clear()
    assert used(store) == 1  # a2


# Prompts


PROMPT = [7, 8, 9, 7, 8, 9]


def answered(store: DocumentStore, written: int = 3, prompt: Iterable[int] = PROMPT) -> Document:
    """A root whose prompt was computed and whose tokens were written, at its end."""
    held = root(prompt)
    store.reserve(held, never)
    for _ in range(written):
        held.append(1, -1.0)
    compute(store, held)
    return held


def test_a_released_root_leaves_its_prompt_and_nothing_of_what_was_written() -> None:
    store = make(8)
    held = answered(store)
    assert used(store) == 4 and store.shared() == []
    store.release(held)
    assert used(store) == 2 and store.documents() == []
    (entry,) = store.shared()
    assert entry.computed == len(PROMPT) and entry.documents == set()
    assert entry.content is not None and entry.content.tokens.tolist() == PROMPT
    same = Document("same", list(PROMPT), parent=READER)
    assert store.attach(same) == len(PROMPT) and is_intact(store, same)


@pytest.mark.parametrize("completed", [False, True])
def test_a_root_leaves_its_prompt_whether_it_came_to_its_end_or_not(completed: bool) -> None:
    store = make(8)
    held = answered(store)
    if completed:
        held.capacity = None
    store.release(held)
    assert used(store) == 2 and store.found(root(PROMPT)) == len(PROMPT) - 1


def test_a_root_starts_with_a_copy_of_its_prompt_but_for_the_last_token() -> None:
    """The next token is drawn from the last one's hidden state, which is not kept."""
    store = make(8)
    store.release(answered(store))
    (prompt,) = store.shared()
    held = root(PROMPT)
    assert store.found(held) == 5
    entry = store.reserve(held, never)
    assert entry is store.entry(held) is not prompt
    assert (store.computed(held), held.settled, prompt.uses) == (5, 5, 2)
    assert is_intact(store, held) and used(store) == 2 + 4
    assert store.found(held) == 0  # it has its entry now
    # What is written goes to the copy.
    held.append(1, -1.0)
    store.arena.data[..., entry.extent.start + 5 : entry.extent.start + 7, :] = -1
    store.advance(held, 7)
    assert (store.slots(prompt) == mark(held)).all() and prompt.computed == 6


def test_a_copy_is_a_use_that_retention_hears_of() -> None:
    store = make(8)
    store.release(answered(store))
    (prompt,) = store.shared()
    fill(store, document("a"))
    assert next(store.retention.cheapest_first()) is prompt
    store.reserve(root(PROMPT), never)
    assert [entry is prompt for entry in store.retention.cheapest_first()] == [False, True]


def test_a_prompt_to_be_computed_anew_from_its_first_token_is_no_use_of_what_is_there() -> None:
    store, again = make(8), root(PROMPT)
    store.release(answered(store))
    (prompt,) = store.shared()
    again.fresh_from = 0
    store.reserve(again, never)
    assert (store.computed(again), prompt.uses) == (0, 1)


def test_a_prompt_that_is_there_is_not_kept_twice() -> None:
    store = make(12)
    first, second = answered(store), answered(store)
    assert used(store) == 8
    store.release(first)
    store.release(second)
    assert used(store) == 2 and len(store.shared()) == 1


def test_a_prompt_is_found_in_a_complete_document_of_its_content() -> None:
    store, same = make(8), Document("same", list(PROMPT), parent=READER)
    fill(store, same)
    held = root(PROMPT)
    store.reserve(held, never)
    assert store.computed(held) == 5 and is_intact(store, held)


def test_a_prompts_grants_are_part_of_it_and_later_ones_are_not() -> None:
    store, x, y = make(12), document("x"), document("y")

    def reading(*grants: tuple[int, Document, int | None]) -> Document:
        held = root(PROMPT, 3)
        held.grants = [DocumentGrant(*grant) for grant in grants]
        return held

    held = reading((2, x, 8), (6, y, None))
    store.reserve(held, never)
    held.append(1, -1.0)
    compute(store, held)
    store.release(held)
    for same in (reading((2, x, None)), reading((2, document("x2", text="x"), 6)), reading((2, x, None), (6, y, None))):
        assert store.found(same) == 5
    for other in (reading(), reading((2, y, None)), reading((3, x, None)), reading((2, x, 5)), reading((5, x, None))):
        assert store.found(other) == 0


def test_nothing_is_found_for_what_is_no_new_root() -> None:
    store = make(8)
    store.release(answered(store))
    resumed = root(PROMPT)
    resumed.append(1, -1.0)
    complete = Document("complete", list(PROMPT))
    store.reserve(Document("empty", [], parent=READER), never)
    for held in (resumed, complete, draft("d", 4, PROMPT), root([*PROMPT, 1]), root(PROMPT[:-1]), root([])):
        assert store.found(held) == 0
        store.reserve(held, pins())
        assert store.computed(held) == 0
        store.release(held)


def test_a_prompt_computed_in_part_is_neither_kept_nor_found() -> None:
    store, held = make(8), root(PROMPT)
    store.reserve(held, never)
    compute(store, held, 5)
    store.release(held)
    assert used(store) == 0
    partly = Document("same", list(PROMPT), parent=READER)
    store.reserve(partly, never)
    compute(store, partly, 5)
    assert store.found(root(PROMPT)) == 0


def test_a_prompt_may_go_for_the_room_of_its_own_copy() -> None:
    store = make(5)
    store.release(answered(store))
    held = root(PROMPT)
    assert store.found(held) == 5
    store.reserve(held, pins(held))
    assert store.computed(held) == held.settled == 0 and store.shared() == []
    assert used(store) == 4


def test_a_prompt_that_moves_while_room_is_made_is_copied_from_where_it_is_then() -> None:
    store, before, held, after = make(10), draft("b", 3), root(PROMPT, 2), draft("a", 1)
    for document in (before, held, after):
        store.reserve(document, never)
    compute(store, held)
    for gone in (held, before):
        store.release(gone)
    (prompt,) = store.shared()
    assert prompt.extent.start == 3 * BLOCK
    wide = root(PROMPT, 5)  # where 3 and 4 blocks are free
    store.reserve(wide, pins())
    assert store.shared() == [prompt] and prompt.extent.start == 0
    assert store.computed(wide) == 5 and is_intact(store, wide)
    assert used(store) == 2 + 1 + 5


def test_without_sharing_prompts_are_not_kept() -> None:
    store = make(8, share=False)
    store.release(answered(store))
    assert used(store) == 0 and store.found(root(PROMPT)) == 0


def test_a_prompt_that_other_weights_computed_is_neither_kept_nor_found() -> None:
    store = make(8)
    store.release(answered(store))
    store.use_weights(b"one")
    assert used(store) == 0 and store.found(root(PROMPT)) == 0
    held = answered(store)
    store.use_weights(b"two")
    store.release(held)
    assert used(store) == 0


def test_a_root_takes_nothing_from_others_that_use_its_entry() -> None:
    """They may be shared where weights have changed since."""
    store, held, twin = make(8), root([5] * 2), Document("twin", [5] * 6, parent=READER)
    store.reserve(held, never)
    held.tokens.extend([5] * 4)
    compute(store, held)
    held.capacity = None
    store.complete(held)
    store.attach(twin)
    store.use_weights(b"others")
    store.release(held)
    assert store.computed(twin) == 6 and is_intact(store, twin)
    assert used(store) == 2


# Weights


def test_other_weights_find_nothing_of_what_was_computed() -> None:
    store, used_now, unused = make(4), document("a"), document("b")
    store.use_weights(b"one")
    fill(store, used_now, unused)
    store.release(unused)
    store.use_weights(b"one")
    assert used(store) == 2 and len(store.shared()) == 2
    store.use_weights(b"two")
    assert used(store) == 1 and store.shared() == []
    assert is_intact(store, used_now) and store.computed(used_now) == BLOCK
    twin = document("twin", text="a")
    assert store.attach(twin) is None
    fill(store, twin)
    assert store.start(twin) != store.start(used_now) and store.shared() == [store.entry(twin)]
    store.release(used_now)
    assert used(store) == 1
    store.use_weights(b"one")
    assert store.attach(used_now) is None


def test_what_other_weights_have_begun_to_write_is_never_shared() -> None:
    store, written, twin = make(8), draft("w", 2, [5] * 6), Document("twin", [5] * 6)
    store.use_weights(b"one")
    store.reserve(written, never)
    compute(store, written, 3)
    for weights in (b"two", b"one"):
        store.use_weights(weights)
    compute(store, written, 5)
    written.capacity = None
    store.complete(written)
    assert is_intact(store, written) and store.shared() == []
    assert store.attach(twin) is None
    fill(store, twin)
    store.release(written)
    assert used(store) == 2 and store.shared() == [store.entry(twin)]


def test_what_other_weights_have_begun_to_write_is_not_mixed_with_what_these_computed() -> None:
    """It goes on with its own tokens' keys and values, as any request that runs while weights change."""
    store, written, known = make(8), draft("w", 2, [5] * 6), Document("known", [5] * 6)
    store.reserve(written, never)
    compute(store, written, 3)
    store.use_weights(b"two")
    fill(store, known)
    written.capacity = None
    store.complete(written)
    assert store.entry(written) is not store.entry(known) and store.computed(written) == 3


def test_keys_depend_on_weights_and_content() -> None:
    store, contents = make(1), [content_of(document(title)) for title in "ab"]
    keys = []
    for weights in (b"", b"one", b"two"):
        store.use_weights(weights)
        keys += [store.key(content) for content in contents]
    assert len(set(keys)) == 6
    assert keys[-1] == store.key(content_of(document("another", text="b")))


# Inserting


def test_an_inserted_document_is_found() -> None:
    store, a = make(4), document("a", 2)
    entry = store.insert(content_of(a), cost=2.5, uses=3)
    assert entry is not None
    assert (entry.extent.length, entry.computed, entry.documents) == (2 * BLOCK, 2 * BLOCK, set())
    store.arena.data[..., entry.extent.start : entry.extent.stop, :] = mark(a)
    assert used(store) == 2
    assert store.attach(a) == 2 * BLOCK and is_intact(store, a)
    assert (entry.cost, entry.uses) == (2.5, 4)


def test_what_is_there_is_not_inserted_again() -> None:
    store, a = make(4), document("a")
    fill(store, a)
    assert store.insert(content_of(document("twin", text="a")), 1.0, 1) is None
    assert used(store) == 1


def test_nothing_is_dropped_for_what_is_inserted() -> None:
    store, a = make(3), document("a", 2)
    fill(store, a)
    store.release(a)
    assert store.insert(content_of(document("b", 2)), 1.0, 1) is None
    assert store.insert(content_of(document("c")), 1.0, 1) is not None
    assert store.insert(content_of(document("d")), 1.0, 1) is None
    assert used(store) == 3 and store.attach(a) == 2 * BLOCK


def test_the_arena_is_compacted_for_what_is_inserted() -> None:
    store, held = fragmented()
    entry = store.insert(content_of(document("w", 16)), 1.0, 1)
    assert entry is not None and entry.extent.length == 16 * BLOCK
    assert residents(store, *held) == "acegikmoqsuwyACE" and all(is_intact(store, left) for left in held)
    assert used(store) == 32


def test_cost_and_uses_of_what_is_inserted_count() -> None:
    store = DocumentStore(KVArena(1, 1, 4, 3 * BLOCK, BLOCK), GreedyDualSizeFrequency())
    for title, cost, uses in (("a", 3.0, 1), ("b", 1.0, 2), ("c", 0.5, 5)):
        store.insert(content_of(document(title)), cost, uses)
    worths = [entry.worth for entry in store.retention.cheapest_first()]
    assert worths == [2 / BLOCK, 2.5 / BLOCK, 3 / BLOCK]
    store.reserve(document("d"), pins())
    assert store.attach(document("b")) is None and store.attach(document("c")) == BLOCK


# Costs


def test_cost_is_what_prefill_took_and_of_what_was_decoded_what_it_would_have_taken() -> None:
    store, prompt, written = make(8), document("p", 2), draft("w", 2, [1] * 2)
    store.reserve(prompt, never)
    compute(store, prompt, 6, seconds=3.0)
    compute(store, prompt, 8, seconds=1.0)
    entry = store.entry(prompt)
    assert entry is not None and entry.cost == 4.0
    store.reserve(written, never)
    compute(store, written, 2, seconds=2.0)
    for token in range(3):
        written.append(token, -1.0)
        compute(store, written, seconds=None)
    entry = store.entry(written)
    assert entry is not None and entry.cost == 2.0
    written.append(3, -1.0)
    written.capacity = None
    store.complete(written)
    assert entry.cost == pytest.approx(6 * (4.0 + 2.0) / (8 + 2), rel=1e-12)


def test_where_nothing_was_prefilled_a_written_document_costs_nothing_yet() -> None:
    store, written = make(2), draft("w", 1, [1])
    store.reserve(written, never)
    compute(store, written, 1, seconds=None)
    written.capacity = None
    store.complete(written)
    entry = store.entry(written)
    assert entry is not None and entry.cost == 0 and entry in store.retention


# Integrity


def sound() -> tuple[DocumentStore, dict[str, Document], dict[str, Entry]]:
    """A complete document in use, an unused one ("b"), one in progress, and two that share."""
    store = make(12)
    documents = {title: document(title) for title in "abc"}
    documents["twin"] = document("twin", text="c")
    documents["w"] = draft("w", 2, [1] * 3)
    fill(store, *(documents[title] for title in "abcw"))
    store.attach(documents["twin"])
    entries = {title: store.entry(held) for title, held in documents.items()}
    store.release(documents["b"])
    store.check_integrity()
    return store, documents, entries  # type: ignore[return-value]


Books = tuple[DocumentStore, dict[str, Document], dict[str, Entry]]


def leak_an_extent(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    store.arena.allocator.allocate(1)


def lose_an_extent(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    store.arena.allocator.release(entries["a"].extent)


def share_an_extent(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    """One is leaked and one is held twice: the numbers agree, the extents do not."""
    entries["a"].extent = entries["b"].extent


def overlap(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    store.arena.allocator.extents.append(Extent(0, BLOCK))


def forget_a_user(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    entries["c"].documents.remove(documents["twin"])


def share_a_draft(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    store._entries[documents["b"]] = entries["w"]
    entries["w"].documents.add(documents["b"])


def name_a_stranger(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    entries["a"].documents.add(documents["b"])


def name_anothers(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    entries["a"].documents.add(documents["c"])


def compute_beyond_the_extent(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    entries["b"].computed = BLOCK + 1


def compute_beyond_the_tokens(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    entries["w"].computed = 4


def leave_an_entry_to_nobody(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    entries["b"].key = None


def lose_a_key(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    """The entry does not know that it can be found, and will be found when it is gone."""
    entries["a"].key = None


def lose_the_way_to_an_entry(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    del store._by_key[entries["a"].key or b""]


def exchange_keys(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    one, other = entries["a"], entries["b"]
    one.key, other.key = other.key, one.key
    store._by_key.update({one.key or b"": one, other.key or b"": other})


def exchange_contents(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    one, other = entries["a"], entries["c"]
    one.content, other.content = other.content, one.content
    exchange_keys(store, documents, {"a": one, "b": other})


def change_weights_behind_its_back(
    store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]
) -> None:
    store.weights = b"others"


def let_a_draft_go(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    store.retention.note(entries["w"])


def keep_a_complete_one_for_ever(
    store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]
) -> None:
    store.retention.forget(entries["a"])


def miscount_what_is_used(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    store.in_use += BLOCK


def let_what_is_gone_go_again(store: DocumentStore, documents: dict[str, Document], entries: dict[str, Entry]) -> None:
    store.retention.note(Entry(Extent(0, BLOCK)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (leak_an_extent, "5 extents for 4 entries"),
        (lose_an_extent, "3 extents for 4 entries"),
        (share_an_extent, "4 extents for 4 entries, not one for each"),
        (overlap, r"\[0, 4\) overlaps"),
        (forget_a_user, "'twin' has an entry that does not know it"),
        (share_a_draft, "'w' is in progress, and shared"),
        (name_a_stranger, r"an entry names documents \['a', 'b'\] that do not use it"),
        (name_anothers, r"an entry names documents \['a', 'c'\] that do not use it"),
        (compute_beyond_the_extent, rf"\[\] has {BLOCK + 1} tokens in {BLOCK} slots"),
        (compute_beyond_the_tokens, "'w' has 4 tokens computed of 3"),
        (leave_an_entry_to_nobody, "an entry of 4 slots can never be found again"),
        (lose_a_key, r"\['a'\] is found by a key that is not its own"),
        (lose_the_way_to_an_entry, r"\['a'\] is not found by its key"),
        (exchange_keys, "is found by a key that is not its own"),
        (exchange_contents, "is of another content than its entry"),
        (change_weights_behind_its_back, "is found by a key that is not its own"),
        (let_a_draft_go, r"\['w'\] is in progress and may be dropped, or neither"),
        (keep_a_complete_one_for_ever, r"\['a'\] is in progress and may be dropped, or neither"),
        (miscount_what_is_used, r"documents use \d+ slots, but \d+ count as in use"),
        (let_what_is_gone_go_again, "retention holds 1 entries that are gone"),
    ],
)
def test_integrity_finds_planted_damage(damage: Callable[..., None], message: str) -> None:
    books = sound()
    damage(*books)
    with pytest.raises(RuntimeError, match=message):
        books[0].check_integrity()
