"""Train the demo model on FOLDOC with the cross_doc_link mask, from scratch, on 2 CPU cores or a GPU's host.

    python examples/foldoc/train.py OUT

Stops and resumes at any time: the state is saved every few minutes to OUT/state.pt, and the order of the data
and the schedule are functions of the step alone.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from data import LAYOUT_POLICY, Batch, collate, epoch_batches, load_documents, make_pack, split
from loss import CompactVocabulary, linear_cross_entropy
from muon import Muon
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.model.checkpoint import atomic_write, save_checkpoint
from ds2ds.model.config import ModelConfig
from ds2ds.model.ds2ds_model import DS2DSModel

VOCAB_SIZE = 50257


@dataclass(frozen=True)
class Settings:
    """What the run depends on; a resumed run must have the same.

    Attributes:
        windows: for each epoch, the lengths of packs; each root draws one of them.
    """

    layers: int = 6
    dim: int = 256
    heads: int = 4
    windows: tuple[tuple[int, ...], ...] = ((512,), (512, 512, 512, 1024), (512, 512, 512, 1024))
    batch_tokens: int = 8192
    matrix_lr: float = 0.02
    embedding_lr: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    seed: int = 1


class Trainer:
    """A DS2DSModel over the compact vocabulary, its two optimizers and its data."""

    def __init__(self, corpus: DocumentCorpus, settings: Settings) -> None:
        self.settings = settings
        self.documents = load_documents(corpus)
        self.train_titles, self.held_out = split(self.documents)
        self.vocabulary = CompactVocabulary(
            np.concatenate([self.documents[title].tokens for title in self.train_titles]), VOCAB_SIZE
        )
        torch.manual_seed(settings.seed)
        self.model = DS2DSModel.from_config(
            ModelConfig(
                self.vocabulary.size,
                settings.layers,
                settings.dim,
                settings.heads,
                layout_policy=LAYOUT_POLICY,
            )
        )
        for layer in self.model.backbone.layers:
            nn.init.zeros_(layer.attn.Wout.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(layer.mlp.Wdown.weight)  # type: ignore[union-attr, arg-type]
            for part in (layer.attn, layer.mlp):
                part.register_forward_hook(
                    lambda module, _, out: nn.functional.dropout(out, settings.dropout, module.training)
                )  # type: ignore[union-attr]
        self.bias = self.vocabulary.bias()
        matrices = [p for p in self.model.backbone.layers.parameters() if p.dim() > 1]
        self.muon = Muon(matrices, lr=settings.matrix_lr, weight_decay=settings.weight_decay)
        self.adam = torch.optim.AdamW(
            [
                {"params": [self.model.embedding.weight], "lr": settings.embedding_lr, "weight_decay": 0.01},
                {"params": [self.model.backbone.skip_weights], "lr": 1e-3, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            eps=1e-10,
        )
        self.base_rates = [group["lr"] for group in self._groups()]
        self.step = 0
        self.seconds = 0.0
        self.epochs = [self._epoch(index) for index in range(len(settings.windows))]
        self.total_steps = sum(map(len, self.epochs))

    def _groups(self) -> list[dict]:
        return [*self.muon.param_groups, *self.adam.param_groups]

    def _epoch(self, index: int) -> list:
        """The batches of an epoch, as packs: a function of the settings."""
        s = self.settings
        return epoch_batches(self.documents, self.train_titles, s.windows[index], s.batch_tokens, s.seed * 1000 + index)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum of the counted tokens' losses, and each one's."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.model(self.vocabulary.compact[batch.tokens], batch.mask)
        rows = hidden.flatten(0, 1)[batch.predict].float()
        return linear_cross_entropy(
            rows, self.model.embedding.weight, self.bias, self.vocabulary.compact[batch.targets]
        )

    def train_step(self, batch: Batch) -> float:
        """One update; returns the mean loss. Rates rise over 40 steps and fall linearly to nothing."""
        done = self.step / self.total_steps
        factor = min((self.step + 1) / 40, max(1 - done, 0.02))
        for group, rate in zip(self._groups(), self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.model.train()
        total, _ = self.loss(batch)
        mean = total / len(batch.predict)
        self.model.zero_grad(set_to_none=True)
        mean.backward()
        self.muon.step()
        self.adam.step()
        self.step += 1
        return mean.item()

    @torch.no_grad()
    def held_out_loss(self, linked: bool = True, limit: int = 10**9) -> float:
        """Mean loss per held-out token, natural log, over the whole vocabulary; targets come from the training part."""
        self.model.eval()
        known = {title: self.documents[title] for title in self.train_titles}
        total, count = 0.0, 0
        for title in self.held_out[:limit]:
            pack = make_pack(self.documents[title], known, max(max(lengths) for lengths in self.settings.windows))
            counts = [False] * (len(pack.documents) - 1) + [True]
            batch = collate([pack], [counts], linked=linked)
            _, losses = self.loss(batch)
            unseen = self.vocabulary.compact[batch.targets] == self.vocabulary.size - 1
            # One of the unseen tokens, not all of them together.
            total += float(losses.sum()) + float(unseen.sum()) * math.log(max(self.vocabulary.unseen, 1))
            count += len(losses)
        return total / count

    def save_state(self, path: Path) -> None:
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
        }
        atomic_write(path, lambda partial: torch.save(state, partial))

    def load_state(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise typer.BadParameter(f"{path} was made with {state['settings']}; use these, or another folder")
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])

    def export(self, path: Path) -> None:
        """The checkpoint, over GPT-2's whole vocabulary, in bfloat16."""
        config = ModelConfig.from_dict({**self.model.config.to_dict(), "vocab_size": VOCAB_SIZE})
        full = DS2DSModel(config)
        state = self.model.state_dict()
        for key in ("embedding.weight", "loss_fn.weight"):
            state[key] = self.vocabulary.expand(state[key])
        full.load_state_dict(state)
        save_checkpoint(full.to(torch.bfloat16), path)


def run(trainer: Trainer, out: Path, save_every_s: float = 180.0) -> None:
    log = out / "log.jsonl"
    last_save = started = time.monotonic()
    running = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=trainer.total_steps, completed=trainer.step)
        first = 0
        for epoch, batches in enumerate(trainer.epochs):
            for packs, counts in batches[max(trainer.step - first, 0) :]:
                loss = trainer.train_step(collate(packs, counts))
                running = loss if not running else 0.98 * running + 0.02 * loss
                progress.update(task, completed=trainer.step, description=f"epoch {epoch + 1} loss {running:.3f}")
                now = time.monotonic()
                trainer.seconds, started = trainer.seconds + now - started, now
                if trainer.step % 25 == 0:
                    line = {"step": trainer.step, "loss": round(running, 4), "s": round(trainer.seconds)}
                    with log.open("a") as file:
                        print(json.dumps(line), file=file)
                    if not progress.console.is_terminal:
                        print(line, flush=True)
                if now - last_save > save_every_s:
                    trainer.save_state(out / "state.pt")
                    last_save = now
            first += len(batches)
            if trainer.step == first:
                line = {"epoch": epoch + 1} | {
                    name: round(trainer.held_out_loss(linked), 4)
                    for name, linked in (("linked", True), ("alone", False))
                }
                with log.open("a") as file:
                    print(json.dumps(line), file=file)
                progress.console.print(line)
                trainer.save_state(out / "state.pt")
                trainer.export(out / "checkpoint")


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the state, the log and the checkpoint.")],
    corpus: Annotated[str, typer.Option(help="Corpus folder, or 'demo' for the packaged FOLDOC.")] = "demo",
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Train, or resume in OUT."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    with DocumentCorpus(corpus) as opened:
        trainer = Trainer(opened, Settings())
    if (out / "state.pt").exists():
        trainer.load_state(out / "state.pt")
    print(
        f"{len(trainer.train_titles)} documents to train on, {len(trainer.held_out)} held out, "
        f"{len(trainer.vocabulary.seen)} of {VOCAB_SIZE} tokens occur, step {trainer.step} of {trainer.total_steps}",
        flush=True,
    )
    run(trainer, out)


if __name__ == "__main__":
    typer.run(main)
