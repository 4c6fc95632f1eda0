"""What the demo model's card says: held-out loss with and without linked documents in view, and the link report.

python examples/foldoc/evaluate.py [CHECKPOINT] [--out FILE.json]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from data import LinkedDocument, Pack, collate, load_documents, make_pack, split
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ds2ds import LinkClosed, Runtime, TokenWritten
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.environment import environment
from ds2ds.files import atomic_write_text
from ds2ds.model.checkpoint import load_checkpoint
from ds2ds.model.ds2ds_model import DS2DSModel

PROMPTS = 50
PROMPT_TOKENS = 20
NEW_TOKENS = 100
WINDOW = 1024


@torch.inference_mode()
def document_losses(model: DS2DSModel, pack: Pack, linked: bool) -> torch.Tensor:
    """Natural-log loss of each token of the pack's root but its first, float32 [n - 1]."""
    counts = [False] * (len(pack.documents) - 1) + [True]
    batch = collate([pack], [counts], linked=linked, multiple=1)
    hidden = model(batch.tokens, batch.mask).flatten(0, 1)[batch.predict]
    return F.cross_entropy(model.logits(hidden).float(), batch.targets, reduction="none")


def held_out_loss(model: DS2DSModel, documents: dict[str, LinkedDocument], titles: list[str], known: set[str]) -> dict:
    """Mean loss per token over held-out documents, each with what it links to in view, and alone.

    Targets are taken from `known`, the documents that the model was trained on: first links first, as many as fit
    whole into WINDOW tokens, the longest that the model saw in training. Longer documents are cut there.
    `after_a_link` counts only the tokens that see a target.
    """
    sums = dict.fromkeys(("linked", "alone", "linked_after", "alone_after"), 0.0)
    tokens = after = 0
    available = {title: documents[title] for title in known}
    for title in track(titles, description="held-out loss", transient=True):
        pack = make_pack(documents[title], available, WINDOW)
        linked, alone = (document_losses(model, pack, see) for see in (True, False))
        grants = pack.spans[-1].grants
        first = min((grant.position for grant in grants), default=len(linked))
        sums["linked"] += float(linked.sum())
        sums["alone"] += float(alone.sum())
        # Row i predicts token i + 1, and sees the target from row `position` on.
        sums["linked_after"] += float(linked[first:].sum())
        sums["alone_after"] += float(alone[first:].sum())
        tokens += len(linked)
        after += len(linked[first:])
    return {
        "documents": len(titles),
        "tokens": tokens,
        "linked": sums["linked"] / tokens,
        "alone": sums["alone"] / tokens,
        "tokens_after_a_link": after,
        "after_a_link_linked": sums["linked_after"] / max(after, 1),
        "after_a_link_alone": sums["alone_after"] / max(after, 1),
    }


def link_report(
    runtime: Runtime, corpus: DocumentCorpus, documents: dict[str, LinkedDocument], titles: list[str]
) -> dict:
    """Links per 100 generated tokens, and the share of them whose target the corpus has.

    Prompts are the title and the first 20 tokens of 50 held-out documents; temperature 0.8, top-k 50, seeds 0 to 49.
    """
    generated = links = existing = 0
    missing: list[str] = []
    for seed, title in enumerate(track(titles[:PROMPTS], description="link report", transient=True)):
        heading = len(runtime.tokenizer.encode(f"# {title}\n\n")) + 1
        prompt = documents[title].tokens[: heading + PROMPT_TOKENS].tolist()
        events = runtime.stream(
            prompt_tokens=prompt, corpus=corpus, max_new_tokens=NEW_TOKENS, temperature=0.8, top_k=50, seed=seed
        )
        written = False
        for event in events:
            if isinstance(event, TokenWritten) and event.title == title:
                generated += 1
                written = True
            elif isinstance(event, LinkClosed) and event.title == title and written:
                links += 1
                if corpus.resolve(event.target) is not None:
                    existing += 1
                else:
                    missing.append(event.target)
    return {
        "prompts": min(PROMPTS, len(titles)),
        "generated_tokens": generated,
        "links": links,
        "links_per_100_tokens": 100 * links / generated,
        "existing_share": existing / max(links, 1),
        "missing_targets": missing,
    }


def summary(figures: dict) -> list[tuple[str, str]]:
    """The figures of the model card, named and formatted."""
    loss, links = figures["held_out_loss"], figures["links"]
    return [
        ("held-out loss, linked documents in view", f"{loss['linked']:.3f}"),
        ("held-out loss, each document alone", f"{loss['alone']:.3f}"),
        ("the same after a document's first link, in view", f"{loss['after_a_link_linked']:.3f}"),
        ("the same after a document's first link, alone", f"{loss['after_a_link_alone']:.3f}"),
        ("links per 100 generated tokens", f"{links['links_per_100_tokens']:.1f}"),
        ("share of links whose target exists", f"{links['existing_share']:.1%} of {links['links']}"),
    ]


def main(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, or 'demo' for the packaged model.")] = "demo",
    corpus: Annotated[str, typer.Option(help="Corpus folder, or 'demo' for the packaged FOLDOC.")] = "demo",
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file too.")] = None,
) -> None:
    """Print the figures of the model card."""
    model = load_checkpoint(checkpoint, dtype=torch.float32)
    with DocumentCorpus(corpus) as opened:
        documents = load_documents(opened)
        train_titles, held_out = split(documents)
        loss = held_out_loss(model, documents, held_out, set(train_titles))
        runtime = Runtime(model, layout_policy=model.config.layout_policy)
        links = link_report(runtime, opened, documents, held_out)
    figures = {
        "environment": environment(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "window": WINDOW,
        "held_out_loss": loss,
        "links": links,
    }
    table = Table("figure", "value", title=f"{checkpoint} on {corpus}")
    for name, value in summary(figures):
        table.add_row(name, value)
    Console().print(table)
    if out is not None:
        atomic_write_text(out, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
