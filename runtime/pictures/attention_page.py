"""An attention map as a page: texts coloured by the attention that their tokens drew, shares as bars.

The texts are plain HTML. The numbers go in as bytes, deflated and in base64, which every browser since 2023 can read
without help; `assets/attention.js` colours.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds2ds.analysis.attention_map import AttentionMap
from ds2ds.errors import ConfigError
from ds2ds.pictures.markup import asset, escape, page


def attention_page(shown: AttentionMap, max_bytes: int) -> str:
    """The HTML; see `AttentionMap.to_html`.

    Raises:
        ConfigError: even the means over layers and heads take more than max_bytes.
    """
    weights, note = _within(shown, max_bytes)
    _, layers, heads, _ = weights[0].shape
    data = {  # numbers and base64 alone: nothing that could end the element that it stands in
        "rows": shown.tokens.tolist(),
        "inView": ["".join("1" if one else "0" for one in row) for row in shown.in_view],
        "shape": [shown.layers, shown.heads],
        "kept": [layers, heads],
        "shares": _packed(np.round(shown.shares * 65535).astype("<u2")),
        # The square root, as most weights are far below 1/255.
        "weights": [_packed(np.round(np.sqrt(array) * 255).astype(np.uint8)) for array in weights],
    }
    size = f"{len(shown.tokens):,} tokens, {shown.layers} layers of {shown.heads} heads"
    rows = set(shown.tokens.tolist())
    texts = [_text(number, shown, rows) for number in range(len(shown.titles))]
    linked = f'<section class="linked" aria-label="Documents it read">\n{"".join(texts[1:])}</section>\n'
    body = f"""<header>
<h1>Attention of <bdi>{escape(shown.titles[0])}</bdi></h1>
<p class="facts">{size}. A token's row is what it read itself: the next token was drawn from it. {note}</p>
<div class="controls">{_select("layer", layers)}{_select("head", heads)}
<label>Colour <select id="colour"><option value="drawn">by attention drawn</option>
<option value="given">by attention given to linked documents</option></select></label>
<label>Scale <select id="scale"><option value="each">of each document</option>
<option value="one">one for all</option></select></label>
<button type="button" id="all">All tokens</button></div>
</header>
<main{' class="alone"' if len(texts) == 1 else ""}>
{texts[0]}{linked if len(texts) > 1 else ""}<aside>
<p id="status" role="status">This page needs JavaScript for its colours.</p>
<ol id="shares"></ol>
<figure id="grid"><figcaption></figcaption><table></table></figure>
<p class="hint">Point at a token to see what it read; click, or Enter, keeps it; arrow keys move on; Esc shows all.</p>
</aside>
</main>
<script type="application/json" id="data">{json.dumps(data)}</script>"""
    return page(f"Attention of {shown.titles[0]}", asset("attention.css"), body, asset("attention.js"))


def _within(shown: AttentionMap, max_bytes: int) -> tuple[Sequence[NDArray[np.float32]], str]:
    """The weights, in means as far as they must be, and what to say of that."""
    weights = shown.weights or ()
    for axes, note in (
        ((), ""),
        ((2,), "To keep the page small, texts are coloured by means over heads."),
        ((1, 2), "To keep the page small, texts are coloured by means over layers and heads."),
    ):
        size = sum(array.size for array in weights)
        if axes:
            size = sum(array.size // int(np.prod([array.shape[axis] for axis in axes])) for array in weights)
        if size <= max_bytes:
            return [array.mean(axes, keepdims=True) if axes else array for array in weights], note
    raise ConfigError(
        f"the page would hold {size:,} bytes of weights, more than max_bytes {max_bytes:,}: analyse fewer tokens, or "
        "raise max_bytes"
    )


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()


def _select(what: str, count: int) -> str:
    if count == 1:
        return ""
    options = "".join(f"<option value={number}>{number}</option>" for number in range(count))
    options = f'<option value="">mean of all</option>{options}'
    return f'<label>{what.capitalize()} <select id="{what}">{options}</select></label>\n'


def _text(number: int, shown: AttentionMap, rows: set[int]) -> str:
    """A document, each token a span; those of the first that are rows can be chosen."""
    spans = []
    for index, text in enumerate(shown.token_texts[number]):
        # What would not be seen: line ends, and tokens without a text.
        seen = escape(text).replace("\n", '<i class="end"></i>\n') or '<i class="none"></i>'
        chosen = ' role="option"' if number == 0 and index in rows else ""
        spans.append(f"<span{chosen}>{seen}</span>")
    box = ' role="listbox" aria-label="Tokens"' if number == 0 else ""
    return (
        f'<section class="document" id="d{number}">\n<h2 dir="auto">{escape(shown.titles[number])}</h2>\n'
        f'<div class="text tokens" dir="auto"{box}>{"".join(spans)}</div>\n</section>\n'
    )
