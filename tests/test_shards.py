from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from foreign_corpus import shard_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.corpus.build.shard_writer import ShardWriter
from ds2ds.corpus.shards import PretokShardedBackend
from ds2ds.errors import ConfigError, CorpusError


def backend(folder: Path, content: bytes, dtype: str = "uint16") -> PretokShardedBackend:
    (folder / "a.bin").write_bytes(content)
    return PretokShardedBackend(folder, ["a.bin"], dtype)


@pytest.mark.parametrize(("dtype", "top"), [("uint16", 65535), ("uint32", 4294967295)])
def test_reads_what_the_format_describes(tmp_path: Path, dtype: str, top: int) -> None:
    shards = backend(tmp_path, shard_bytes([5, top, 0, 7], dtype), dtype)
    width = np.dtype(dtype).itemsize
    tokens = shards.read(0, 1024 + width, 2)
    assert tokens.dtype == np.dtype(dtype)
    assert tokens.tolist() == [top, 0]
    assert shards.read(0, 1024 + 4 * width, 0).tolist() == []


def test_a_read_is_a_copy_that_outlives_the_backend(tmp_path: Path) -> None:
    shards = backend(tmp_path, shard_bytes([1, 2, 3]))
    tokens = shards.read(0, 1024, 3)
    tokens[0] = 9
    assert shards.read(0, 1024, 3).tolist() == [1, 2, 3]
    shards.close()
    assert tokens.tolist() == [9, 2, 3]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (shard_bytes([1, 2])[:1023], "truncated"),
        (shard_bytes([1, 2])[:-1], "promises 2 tokens"),
        (shard_bytes([1, 2]) + b"x", "promises 2 tokens"),
        (shard_bytes([], count=-1), "promises -1 tokens"),
        (shard_bytes([1], magic=20240520), "magic number is 20240520, expected 11041999"),
        (shard_bytes([1], version=2), "version 2"),
        (shard_bytes([1, 2], "uint32"), "4 bytes per token, metadata.json says 2"),
    ],
)
def test_a_damaged_shard_is_named_when_first_touched(tmp_path: Path, content: bytes, reason: str) -> None:
    shards = backend(tmp_path, content)  # opening does not touch it
    with pytest.raises(CorpusError, match=reason) as caught:
        shards.read(0, 1024, 1)
    assert str(tmp_path / "a.bin") in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards = PretokShardedBackend(tmp_path, ["gone.bin"], "uint16")
    with pytest.raises(CorpusError, match=r"gone\.bin: cannot read this shard \(No such file"):
        shards.read(0, 1024, 1)


@pytest.mark.parametrize(
    ("offset", "length"), [(1024, 4), (1030, 1), (1025, 1), (1022, 1), (0, 1), (1024, -1), (1 << 62, 1)]
)
def test_a_range_outside_of_the_shard_is_an_error(tmp_path: Path, offset: int, length: int) -> None:
    shards = backend(tmp_path, shard_bytes([1, 2, 3]))
    with pytest.raises(CorpusError, match=f"{length} tokens at byte {offset} do not lie within"):
        shards.read(0, offset, length)


@pytest.mark.parametrize("shard", [-1, 1])
def test_a_shard_that_metadata_does_not_name_is_an_error(tmp_path: Path, shard: int) -> None:
    shards = backend(tmp_path, shard_bytes([1]))
    with pytest.raises(CorpusError, match=f"no shard {shard}, metadata.json names 1"):
        shards.read(shard, 1024, 1)


@pytest.mark.parametrize("dtype", ["int32", "float32", "", "u2"])
def test_another_dtype_is_an_error(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(CorpusError, match="dtype_str must be one of uint16, uint32"):
        PretokShardedBackend(tmp_path, [], dtype)


def test_after_close_reading_is_an_error(tmp_path: Path) -> None:
    shards = backend(tmp_path, shard_bytes([1]))
    shards.close()
    shards.close()
    with pytest.raises(CorpusError, match="is closed"):
        shards.read(0, 1024, 1)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 65535), max_size=6), max_size=8), st.integers(1, 8))
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], most: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "uint16", most) as writer:
        places = [writer.append(np.array(tokens, dtype=np.uint32)) for tokens in documents]
    shards = PretokShardedBackend(folder, writer.filenames, "uint16")
    assert [shards.read(*place).tolist() for place in places] == documents
    for number, name in enumerate(writer.filenames):
        held = [tokens for tokens, place in zip(documents, places, strict=True) if place[0] == number]
        flat = [token for tokens in held for token in tokens]
        assert (folder / name).read_bytes() == shard_bytes(flat)
        assert len(flat) <= most or sum(map(bool, held)) == 1


def test_token_ids_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path, "uint16", 10) as writer,
        pytest.raises(CorpusError, match=r"0\.\.65535 for uint16, got 65536"),
    ):
        writer.append(np.array([65536]))


def test_a_shard_holds_at_least_one_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_tokens_per_shard must be positive, got 0"):
        ShardWriter(tmp_path, "uint16", 0)
