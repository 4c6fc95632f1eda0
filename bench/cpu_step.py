"""Decoding steps on a CPU: ds2ds with float32 and int8 weights beside CTranslate2 and transformers, one run.

    python bench/cpu_step.py

Random weights of the same shape (GPT-2's for the others), greedy, a prompt of `context` tokens, batch 1 and more. All
contestants take turns in one process; in each round each decodes some tokens for every sequence of the batch. Figures
are medians over rounds; "times" are medians of each round's ratio. Prefill is not counted: CTranslate2, which decodes
whole texts, is timed for `tokens` + 1 and for 1, and the difference counts.

`ds2ds-invariant` is float32 with `model.batch_invariant`; what that costs in prefill is measured too.
The floor is the bytes of the weights and of keys and values that a step reads, by what a plain sum reads per second.

Prints a table, writes bench/results/cpu_step_cpu.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import baselines
import torch
import typer
from decode import BUFFER_BYTES, HEAD_DIM, MAX_SEQ_LEN, VOCAB_SIZE, parse_size, read_bandwidth, runtime_tokens
from report import report
from rich.console import Console
from rich.table import Table

from ds2ds.engine.engine import Engine
from ds2ds.environment import environment
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.generation.linked_doc_generator import LinkedDocumentGenerator
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.int8_weight import Int8Weight
from ds2ds.model.quantised import quantise_weights
from ds2ds.runtime import Runtime

RESULT = Path(__file__).parent / "results" / "cpu_step_cpu.json"
OURS = ("ds2ds-float32", "ds2ds-invariant", "ds2ds-int8", "ds2ds-int8_dynamic")
OTHERS = ("transformers", "ctranslate2-float32", "ctranslate2-int8")


@dataclass(frozen=True)
class Contestant:
    """Attributes:
    seconds: decode so many tokens of each sequence, and say how long it took.
    weight_bytes: what the weights of a step take; 0: not known.
    """

    name: str
    seconds: Callable[[int], float]
    weight_bytes: int = 0


def random_model(size: str) -> DS2DSModel:
    layers, width = parse_size(size)
    torch.manual_seed(0)
    shape = {"num_layers": layers, "model_dim": width, "num_heads": width // HEAD_DIM}
    return DS2DSModel.from_config(vocab_size=VOCAB_SIZE, max_seq_len=MAX_SEQ_LEN, **shape)


def prompts(batch: int, context: int) -> list[list[int]]:
    return torch.randint(VOCAB_SIZE - 1, (batch, context), generator=torch.Generator().manual_seed(0)).tolist()


def variant(model: DS2DSModel, name: str) -> DS2DSModel:
    kind = name.removeprefix("ds2ds-")
    made = copy.deepcopy(model)
    made.batch_invariant = kind == "invariant"
    return quantise_weights(made, kind) if kind.startswith("int8") else made


def step_bytes(model: DS2DSModel) -> int:
    """Of the weights that every step reads: not the embedding, unless it is the head."""
    int8 = [m for m in model.modules() if isinstance(m, Int8Weight)]
    if int8:
        return sum(m.stored.nbytes + m.scales.nbytes for m in int8)
    return sum(p.nbytes for p in model.parameters())


def ours(model: DS2DSModel, name: str, batch: list[list[int]], most: int) -> Contestant:
    """An engine with a request for each sequence; each step decodes one token of all."""
    made = variant(model, name)
    length = len(batch[0]) + most
    engine = Engine(made, arena_tokens=len(batch) * (2 * length + 256))
    generator = LinkedDocumentGenerator(made, engine=engine, layout_policy="null")
    config = GenerationConfig(
        max_new_tokens=most,
        max_tokens_per_document=length,
        max_context_length=length,
        temperature=0.0,
        # Links are looked for but not followed, and no token ends the document.
        max_link_depth=0,
        process_prompt_links=False,
        eos_token_id=VOCAB_SIZE,
    )
    running = [generator.start(None, prompt, None, config) for prompt in batch]

    def written() -> list[int]:
        return [len(one.request.context.root.tokens) for one in running]

    def step(count: int) -> None:
        before = written()
        for _ in range(count):
            engine.step()
        if written() != [tokens + count for tokens in before]:
            raise RuntimeError(f"{name}: {count} steps took {before} tokens to {written()}")

    while min(written()) == len(batch[0]):
        engine.step()
    return Contestant(name, lambda count: timed(lambda: step(count)), step_bytes(made))


def advance(streams: list[Iterator[Any]], count: int) -> None:
    for _ in range(count):
        for stream in streams:
            next(stream)


def transformers(model: Any, batch: list[list[int]]) -> Contestant:
    """The faster one, here, of transformers' implementations of attention."""
    trials = {way: [baselines.transformers_gpt2_batch(model, batch, way)] for way in baselines.TRANSFORMERS_ATTENTION}
    for streams in trials.values():
        advance(streams, 3)
    speed = {way: min(timed(lambda s=streams: advance(s, 2)) for _ in range(3)) for way, streams in trials.items()}
    chosen = min(speed, key=lambda way: speed[way])
    # Switching is by a setting of the shared model, so the loser must be gone before the winner starts.
    stream = baselines.transformers_gpt2_batch(model, batch, chosen)
    parameters = sum(p.nbytes for name, p in model.named_parameters() if "wpe" not in name)
    return Contestant("transformers", lambda count: timed(lambda: advance([stream], count)), parameters)


def ctranslate2(folder: Path, compute_type: str, batch: list[list[int]], threads: int) -> Contestant:
    generator = baselines.ctranslate2_generator(folder, compute_type, threads)

    def seconds(count: int) -> float:
        one = timed(lambda: baselines.ctranslate2_decode(generator, batch, 1))
        return timed(lambda: baselines.ctranslate2_decode(generator, batch, count + 1)) - one

    return Contestant(f"ctranslate2-{compute_type}", seconds)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def race(
    contestants: list[Contestant], batch: int, tokens: int, rounds: int, kv_bytes: int, buffer: torch.Tensor
) -> dict[str, Any]:
    """Let them take turns; returns plain JSON types."""
    for one in contestants:
        one.seconds(3)
    speeds: dict[str, list[float]] = {one.name: [] for one in contestants}
    bandwidth = []
    for turn in range(rounds):
        bandwidth.append(read_bandwidth(buffer))
        for one in contestants[:: 1 if turn % 2 == 0 else -1]:
            speeds[one.name].append(batch * tokens / max(one.seconds(tokens), 1e-9))
    read = statistics.median(bandwidth)
    figures: dict[str, Any] = {}
    for one in contestants:
        speed = statistics.median(speeds[one.name])
        figures[one.name] = {
            "tokens_per_second": round(speed, 2),
            "best_round": round(max(speeds[one.name]), 2),
            "rounds": [round(s, 2) for s in speeds[one.name]],
        }
        if one.weight_bytes:
            moved = (one.weight_bytes + kv_bytes) * speed / batch / 1e9
            figures[one.name] |= {
                "bytes_per_step": one.weight_bytes + kv_bytes,
                "gb_per_second": round(moved, 2),
                "share_of_read_bandwidth": round(moved / read, 3),
            }
    times = {
        a: {
            b: round(statistics.median(x / y for x, y in zip(speeds[a], speeds[b], strict=True)), 3)
            for b in speeds
            if b in OTHERS or b == "ds2ds-float32" != a
        }
        for a in speeds
        if a in OURS
    }
    return {"batch": batch, "read_gb_per_second": round(read, 2), "contestants": figures, "times": times}


def prefill_cost(model: DS2DSModel, context: int, rounds: int) -> dict[str, Any]:
    """Prefill of one prompt, tokens per second, with and without batch-invariant execution."""
    (prompt,) = prompts(1, context)
    speeds: dict[str, list[float]] = {"ds2ds-float32": [], "ds2ds-invariant": []}
    # A Runtime sets the model's batch_invariant, so each has its own model.
    runtimes = {
        name: Runtime(variant(model, name), document_store=False, batch_invariant=name == "ds2ds-invariant")
        for name in speeds
    }
    for _ in range(rounds + 1):
        for name, runtime in runtimes.items():
            speeds[name].append(context / timed(lambda r=runtime: next(runtime_tokens(r, prompt, 2))))
    # Each one's first also compiles and allocates.
    figures = {name: round(statistics.median(some[1:]), 1) for name, some in speeds.items()}
    pairs = zip(speeds["ds2ds-float32"][1:], speeds["ds2ds-invariant"][1:], strict=True)
    return {
        "context": context,
        "tokens_per_second": figures,
        "cost": round(statistics.median(a / b for a, b in pairs), 3),
    }


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(title="Decoding on a CPU (times: by how much it is faster, medians of each round's ratio)")
    for heading in ("model", "batch", "contestant", "tokens/s", "best round", "share of bandwidth", *OTHERS):
        out.add_column(heading, justify="right")
    for result in results:
        for name, figures in result["contestants"].items():
            share = figures.get("share_of_read_bandwidth")
            times = result["times"].get(name, {})
            out.add_row(
                result["model"],
                str(result["batch"]),
                name,
                f"{figures['tokens_per_second']:.1f}",
                f"{figures['best_round']:.1f}",
                "" if share is None else f"{share:.0%}",
                *(f"{times[other]:.2f}" if other in times else "" for other in OTHERS),
            )
    return out


def main(
    size: Annotated[list[str], typer.Option(help="LAYERSxWIDTH; may be given again.")] = ["12x768"],  # noqa: B006
    batch: Annotated[list[int], typer.Option(min=1, help="May be given again.")] = [1, 16],  # noqa: B006
    context: Annotated[int, typer.Option(min=1)] = 128,
    against: Annotated[list[str], typer.Option(help="May be given again.")] = list(OTHERS),  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1)] = 9,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each sequence in a round.")] = 16,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = RESULT,
) -> None:
    """Measure, print a table and write JSON."""
    unknown = sorted(set(against) - set(OTHERS))
    if unknown:
        raise typer.BadParameter(f"--against must be among {OTHERS}, got {unknown}")
    torch.set_num_threads(threads)
    progress = Console(stderr=True)
    buffer = torch.ones(BUFFER_BYTES["cpu"] // 4)
    results, prefills = [], []
    most = 64 + tokens * rounds  # all decode to the end, and those that were prefilled first are some tokens ahead
    for shape in size:
        model = random_model(shape)
        gpt2 = baselines.gpt2_like(model.config, torch.device("cpu"), torch.float32) if against else None
        with tempfile.TemporaryDirectory() as scratch:
            if any(name.startswith("ctranslate2") for name in against):
                progress.print(f"{shape}: converting GPT-2 for CTranslate2 ...")
                baselines.convert_for_ctranslate2(gpt2, Path(scratch))
            for count in batch:
                progress.print(f"{shape}, batch {count} ...")
                some = prompts(count, context)
                contestants = [ours(model, name, some, most) for name in OURS]
                for name in against:
                    if name == "transformers":
                        contestants.append(transformers(gpt2, some))
                    else:
                        kind = name.removeprefix("ctranslate2-")
                        contestants.append(ctranslate2(Path(scratch), kind, some, threads))
                kv_bytes = 2 * model.config.num_layers * model.config.model_dim * context * count * 4
                results.append({"model": shape, **race(contestants, count, tokens, rounds, kv_bytes, buffer)})
        progress.print(f"{shape}, prefill ...")
        prefills.append({"model": shape, **prefill_cost(model, 512, rounds=5)})
    settings = {"context": context, "rounds": rounds, "tokens_per_round": tokens, "threads": threads}
    measured = {
        "environment": environment(),
        "versions": baselines.versions(),
        "settings": settings,
        "results": results,
        "batch_invariant_prefill": prefills,
    }
    report(table(results), measured, output)


if __name__ == "__main__":
    typer.run(main)
