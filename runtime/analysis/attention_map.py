"""How much attention each document in view received: arrays, and what can be made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds2ds.documents.generation_result import Trace
from ds2ds.errors import ConfigError, Ds2dsError
from ds2ds.files import atomic_write, atomic_write_text

FORMAT = "ds2ds attention 1"


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """What tokens of one document read, layer by layer and head by head.

    The row of token t is what t itself read, from which the model told the token at t + 1.

    Attributes:
        titles: the document itself, then all that it was ever granted, in that order.
        token_texts: for each of these documents the text of each token. A character that is split between tokens
            is the last one's, the others have none; nor have end marks. Joined they are the document's text.
        tokens: int64 [n], ascending: the tokens of the document that the rows are of.
        shares: float32 [n, layers, heads, documents]: attention that each document received; 0 where it was not in
            view. They add up to 1.
        in_view: bool [n, documents].
        weights: for each document float32 [n, layers, heads, its tokens], what each of its tokens received; None
            unless asked for.
        trace: what was brought into the arena for this. Not kept in files.
    """

    titles: tuple[str, ...]
    token_texts: tuple[tuple[str, ...], ...]
    tokens: NDArray[np.int64]
    shares: NDArray[np.float32]
    in_view: NDArray[np.bool_]
    weights: tuple[NDArray[np.float32], ...] | None = None
    trace: Trace = field(default_factory=Trace)

    @property
    def layers(self) -> int:
        return self.shares.shape[1]

    @property
    def heads(self) -> int:
        return self.shares.shape[2]

    def by_document(
        self, layers: int | Iterable[int] | None = None, heads: int | Iterable[int] | None = None
    ) -> NDArray[np.float32]:
        """The shares as a mean over layers and heads: float32 [n, documents].

        Args:
            layers: which ones, from 0; None: all.
            heads: the same.

        Raises:
            ConfigError: there is no such layer or head.
        """
        chosen = self.shares[:, _chosen(layers, self.layers, "layers")]
        mean: NDArray[np.float32] = chosen[:, :, _chosen(heads, self.heads, "heads")].mean((1, 2), dtype=np.float32)
        return mean

    def to_npz(self, path: str | Path) -> None:
        """Write all of it as a compressed numpy archive, for `from_npz`.

        Raises:
            Ds2dsError: the file cannot be written; what was there before is still there.
        """
        about = {"format": FORMAT, "titles": self.titles, "token_texts": self.token_texts}
        arrays: dict[str, NDArray[Any]] = {
            # As bytes: numpy's own strings lose zeros at their end.
            "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
            "tokens": self.tokens,
            "shares": self.shares,
            "in_view": self.in_view,
            **{f"weights_{number}": array for number, array in enumerate(self.weights or ())},
        }

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:  # given a name, numpy would put an ending to it
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

        _written(Path(path), lambda: atomic_write(Path(path), write))

    @classmethod
    def from_npz(cls, path: str | Path) -> AttentionMap:
        """What `to_npz` wrote.

        Raises:
            Ds2dsError: the file is missing, or is no attention map.
        """
        wrong = Ds2dsError(f"{path} is no attention map, as AttentionMap.to_npz writes it")
        try:
            # Opened here: given a name, numpy leaves a file that is none open.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                about = json.loads(arrays["about"].tobytes())
                if about["format"] != FORMAT:
                    raise ValueError(f"its format is {about['format']!r}")
                # Of all documents or of none.
                weighed = range(len(about["titles"]) if "weights_0" in arrays else 0)
                weights = tuple(arrays[f"weights_{n}"] for n in weighed)
                made = cls(
                    tuple(about["titles"]),
                    tuple(map(tuple, about["token_texts"])),
                    arrays["tokens"],
                    arrays["shares"],
                    arrays["in_view"],
                    weights or None,
                )
        except OSError as error:
            raise Ds2dsError(f"cannot read {path}: {error}") from error
        except Exception as error:  # a damaged file fails in NumPy and zipfile in a dozen ways, zlib.error among them
            raise wrong from error
        return made

    def heatmap(
        self,
        path: str | Path,
        layers: int | Iterable[int] | None = None,
        heads: int | Iterable[int] | None = None,
    ) -> None:
        """Draw, as PNG or SVG by the ending: each document's share by token, and below by layer and head.

        Args:
            layers: those over which the upper part is a mean; None: all.
            heads: the same.

        Raises:
            ConfigError: another ending, no such layer or head, or matplotlib is missing (the extra `pictures` brings
                it); Ds2dsError: the file cannot be written.
        """
        from ds2ds.pictures.heat_map import draw_heat_map

        shares = self.by_document(layers, heads)
        _written(Path(path), lambda: draw_heat_map(self, shares, Path(path)))

    def to_html(self, path: str | Path | None = None, *, max_bytes: int = 2**25) -> str:
        """A page of its own, without anything from elsewhere: texts coloured by the attention that their tokens drew.

        Args:
            path: where to write it; None: nowhere.
            max_bytes: most bytes of weights to put into the page, one a weight, before compression. Beyond that it
                has their means over heads or, if that is still too much, over layers and heads; and says so.

        Returns:
            The HTML.

        Raises:
            ConfigError: there are no weights; Ds2dsError: the file cannot be written.
        """
        from ds2ds.pictures.attention_page import attention_page

        if self.weights is None:
            raise ConfigError("to_html needs the attention of each token: analyse with per_token=True")
        page = attention_page(self, max_bytes)
        if path is not None:
            _written(Path(path), lambda: atomic_write_text(Path(path), page))
        return page


def _chosen(asked: int | Iterable[int] | None, count: int, what: str) -> list[int]:
    try:
        chosen = range(count) if asked is None else [asked] if isinstance(asked, Integral) else asked
        numbers = [index(one) for one in chosen]  # type: ignore[union-attr]
    except TypeError as error:
        raise ConfigError(f"{what} must be an integer, several, or None, got {asked!r}") from error
    if not numbers or not all(0 <= one < count for one in numbers):
        raise ConfigError(f"{what} must be in [0, {count}), at least one, got {asked!r}")
    return numbers


def _written(path: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise Ds2dsError(f"cannot write {path}: {error}") from error
