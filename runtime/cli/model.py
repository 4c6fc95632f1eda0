"""``ds2ds model``: make a checkpoint of a training run, and look into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ds2ds.errors import CheckpointError

app = typer.Typer(no_args_is_help=True, help="Make a checkpoint of a training run, and look into one.")


@app.command("import")
def import_(
    run_dir: Annotated[
        Path, typer.Argument(help="Folder with hyperparameters.json and checkpoints/best_model.pt.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder for config.json and model.safetensors.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is already there.")] = False,
) -> None:
    """Make a checkpoint of a training run directory. Nothing in it is executed."""
    from ds2ds.model.checkpoint import CONFIG_NAME, WEIGHTS_NAME
    from ds2ds.model.import_run import import_run

    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file: name a folder")
    if not force and any((out / name).exists() for name in (CONFIG_NAME, WEIGHTS_NAME)):
        raise CheckpointError(f"{out} holds a checkpoint: pass --force to replace it")
    config = import_run(run_dir, out)
    size = (out / WEIGHTS_NAME).stat().st_size
    typer.echo(
        f"{out}: {config.num_layers} layers x {config.model_dim}, vocabulary {config.vocab_size:,}, "
        f"layout {config.layout_policy}, {size / 1e6:,.1f} MB"
    )


@app.command()
def info(
    path: Annotated[str, typer.Argument(help='Checkpoint folder; "demo" is packaged.')] = "demo",
) -> None:
    """What a checkpoint holds. All of it is read and checked."""
    from ds2ds.model.checkpoint import WEIGHTS_NAME, demo_path, load_checkpoint

    model = load_checkpoint(path)
    folder = demo_path() if path == "demo" else Path(path)
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = {
        "path": str(folder),
        "parameters": f"{parameters:,}, {str(model.dtype).removeprefix('torch.')}",
        "size": f"{(folder / WEIGHTS_NAME).stat().st_size / 1e6:,.1f} MB",
        "shape": f"{config.num_layers} layers x {config.model_dim}, {config.num_heads} heads of {config.head_dim}, "
        f"MLP {config.mlp_dim}",
        "vocabulary": f"{config.vocab_size:,}, {config.tokenizer}, "
        f"lm head {'tied' if config.weight_tying else 'of its own'}",
        "context": f"{config.max_seq_len:,} tokens",
        "mask": config.mask_type,
        "layout": config.layout_policy,
        "links": config.link_detector,
    }
    console = Console()
    if not console.is_terminal:
        for name, value in rows.items():
            typer.echo(f"{name:<10} {value}")
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    console.print(table)
