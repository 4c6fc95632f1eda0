"""What int8 weights cost: perplexity of the packaged demo model on held-out FOLDOC, beside float32.

    python bench/quantised.py

Loss as in the model's card (`examples/foldoc/evaluate.py`): each held-out document with what it links to in view.
Prints a table, writes bench/results/quantised_cpu.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from report import report
from rich.progress import track
from rich.table import Table

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.environment import environment
from ds2ds.model.checkpoint import load_checkpoint
from ds2ds.model.quantised import KINDS, quantise_weights

ROOT = Path(__file__).resolve().parent
RESULT = ROOT / "results" / "quantised_cpu.json"
sys.path.insert(0, str(ROOT.parent / "examples" / "foldoc"))  # before a package that is named `evaluate` too

from data import load_documents, make_pack, split  # noqa: E402
from evaluate import WINDOW, document_losses  # noqa: E402


def measure(documents: int) -> tuple[int, dict[str, Any]]:
    """Tokens predicted, and for float32 and each kind of int8 the loss, the perplexity and how far that is off."""
    floats = load_checkpoint("demo", dtype=torch.float32)
    models = {"float32": floats, **{kind: quantise_weights(copy.deepcopy(floats), kind) for kind in KINDS}}
    with DocumentCorpus("demo") as corpus:
        loaded = load_documents(corpus)
    train, held_out = split(loaded)
    known = {title: loaded[title] for title in train}
    sums, tokens = dict.fromkeys(models, 0.0), 0
    for title in track(held_out[:documents], description="held-out loss", transient=True):
        pack = make_pack(loaded[title], known, WINDOW)
        for name, model in models.items():
            losses = document_losses(model, pack, linked=True)
            sums[name] += float(losses.double().sum())
        tokens += len(losses)
    loss = {name: total / tokens for name, total in sums.items()}
    return tokens, {
        name: {
            "loss": round(value, 6),
            "perplexity": round(math.exp(value), 4),
            "perplexity_change": round(math.expm1(value - loss["float32"]), 6),
        }
        for name, value in loss.items()
    }


def main(
    documents: Annotated[int, typer.Option(min=1, help="Held-out documents, of 300.")] = 300,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = RESULT,
) -> None:
    """Measure, print a table and write JSON."""
    torch.set_num_threads(threads)
    tokens, figures = measure(documents)
    table = Table("weights", "loss", "perplexity", "change", title=f"The demo model on {tokens:,} held-out tokens")
    for name, one in figures.items():
        table.add_row(name, f"{one['loss']:.5f}", f"{one['perplexity']:.3f}", f"{one['perplexity_change']:+.3%}")
    measured = {"environment": environment(), "documents": documents, "tokens": tokens, "weights": figures}
    report(table, measured, output)


if __name__ == "__main__":
    typer.run(main)
