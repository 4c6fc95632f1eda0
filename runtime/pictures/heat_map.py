"""An attention map as a figure: each document's share by token, and by layer and head. Drawn by matplotlib."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ds2ds.analysis.attention_map import AttentionMap
from ds2ds.errors import ConfigError
from ds2ds.extras import require_extra
from ds2ds.files import atomic_write
from ds2ds.pictures.markup import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

ENDINGS = (".png", ".svg")

TOKENS_A_STRIP = 56
"""Tokens side by side whose texts can still be read; more go below."""

COLOURS, NOT_IN_VIEW = "YlOrBr", "#e8eaee"


def require_matplotlib() -> None:
    """Raises ConfigError where matplotlib is not installed."""
    require_extra("pictures", "a heat map", "matplotlib")


def draw_heat_map(shown: AttentionMap, shares: NDArray[np.float32], path: Path) -> None:
    """See `AttentionMap.heatmap`; shares are [n, documents]."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"a heat map is a .png or .svg file, got {str(path)!r}")
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    tokens, documents = shares.shape
    strips = -(-tokens // TOKENS_A_STRIP)
    columns = -(-tokens // strips)
    strip_height, cells_height = 0.9 + 0.3 * documents, 0.7 + 0.26 * shown.layers
    width = max(9.0, 3.2 + 0.19 * columns)
    a_row = min(documents, max(1, int(width / (1.3 + 0.2 * shown.heads))))
    rows_of_cells = -(-documents // a_row)
    heights = [strip_height] * strips + [cells_height] * rows_of_cells
    # The fonts in an SVG stay text, and its ids are always the same.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ds2ds", "font.size": 8}):
        figure = Figure(figsize=(width, sum(heights) + 0.5 * len(heights) + 0.5), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for strip in range(strips):
            here = slice(strip * columns, min((strip + 1) * columns, tokens))
            _strip(parts[strip].subplots(), shown, shares, here, columns)
        for row in range(rows_of_cells):
            within = parts[strips + row].subplots(1, a_row, squeeze=False)[0]
            for place, cell_axes in enumerate(within):
                document = row * a_row + place
                if document < documents:
                    image = _cells(cell_axes, shown, document)
                else:
                    cell_axes.axis("off")
            parts[strips + row].colorbar(image, ax=list(within), label="share", pad=0.02)
        title = f"Attention of {len(shown.tokens)} tokens of “{_name(shown.titles[0], 60)}”"
        figure.suptitle(title, fontsize=11, parse_math=False)
        metadata: dict[str, Any] = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        kind = path.suffix.lower()[1:]
        with warnings.catch_warnings():
            # A box stands for what the font lacks; an SVG is shown with the fonts of whoever looks at it.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            atomic_write(path, lambda partial: figure.savefig(partial, format=kind, dpi=150, metadata=metadata))


def _strip(axes: Axes, shown: AttentionMap, shares: NDArray[np.float32], here: slice, columns: int) -> None:
    """Documents by tokens: the share of each, and the tokens' texts below."""
    seen = np.ma.masked_array(shares[here], ~shown.in_view[here]).T
    axes.imshow(seen, aspect="auto", cmap=_colours(), vmin=0, vmax=1, interpolation="nearest")
    count = here.stop - here.start
    axes.set_xlim(-0.5, columns - 0.5)
    texts = [_label(shown.token_texts[0][token], token) for token in shown.tokens[here]]
    axes.set_xticks(range(count), texts, rotation=90, fontsize=7, parse_math=False)
    names = [_name(title) for title in shown.titles]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel(f"tokens {shown.tokens[here.start]} to {shown.tokens[here.stop - 1]}")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2)


def _cells(axes: Axes, shown: AttentionMap, document: int) -> AxesImage:
    """Layers by heads: the mean share of a document over the tokens that see it."""
    seen = shown.in_view[:, document]
    mean = shown.shares[seen, :, :, document].mean(0) if seen.any() else np.zeros((shown.layers, shown.heads))
    image = axes.imshow(mean, aspect="auto", cmap=_colours(), vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(f"{_name(shown.titles[document])}\nin view of {seen.sum()}", fontsize=8, parse_math=False)
    for axis, count, name in ((axes.xaxis, shown.heads, "head"), (axes.yaxis, shown.layers, "layer")):
        axis.set_ticks(range(0, count, -(-count // 12)))
        axis.set_label_text(name)
    axes.spines[:].set_visible(False)
    return image


def _colours() -> Colormap:
    import matplotlib

    return matplotlib.colormaps[COLOURS].with_extremes(bad=NOT_IN_VIEW)


def _label(text: str, token: int) -> str:
    """A token on an axis: on one line, and never nothing."""
    return _name(text.replace("\n", "↵").replace("\t", "⇥"), 14) or (f"#{token}" if not text else "␣")


def _name(text: str, width: int = 26) -> str:
    return shorten("".join(one if one.isprintable() else "\ufffd" for one in text), width)
