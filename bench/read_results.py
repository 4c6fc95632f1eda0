"""Measured figures as the README shows them: `python bench/read_results.py` prints every table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

RESULTS = Path(__file__).parent / "results"
WORKLOADS, SIZES = (
    [RESULTS / f"throughput_{size}{what}_cpu.json" for size in ("24x1024", "36x1280")] for what in ("", "_int8")
)
DECODE_CPU, REUSE_CPU, REUSE_SWEEP_CPU, RETENTION, CPU_STEP, HOST_STEP, SERVE_LOAD, SAMPLING, BUSY, PROCESSORS = (
    RESULTS / f"{name}.json"
    for name in (
        "decode_cpu",
        "reuse_cpu",
        "reuse_sweep_cpu",
        "retention",
        "cpu_step_cpu",
        "host_step_cpu",
        "serve_load",
        "sampling_cpu",
        "busy_cpu",
        "processors_cpu",
    )
)
ISSUE_SLOTS, SERVE_HOST = RESULTS / "issue_slots.json", RESULTS / "serve_host_cpu.json"
SERVED = ("cpu_us_per_token", "tokens_per_read")
HEADINGS = {
    "ds2ds": "ds2ds",
    "no_cache_flex": "no cache, FlexAttention",
    "no_cache_sdpa": "no cache, SDPA",
    "transformers": "transformers GPT-2",
}


def markdown_table(path: str | Path) -> str:
    """A markdown table of a decode_*.json, a line of what it was measured on below it; no newline at the end."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    results = measured["results"]
    names = list(results[0]["contestants"])
    headings = ["model", "context", *(HEADINGS[name] for name in names), "ds2ds reads"]
    lines = [_row(headings), _row(["---", *["---:"] * (len(headings) - 1)])]
    for result in results:
        own = result["contestants"]["ds2ds"]
        share = f"{own['gb_per_second']:.1f} GB/s, {own['share_of_read_bandwidth']:.0%}"
        model = f"{result['model']} ({result['parameters'] / 1e6:.0f}M)"
        lines.append(_row([model, str(result["context"]), *(_speed(result, name) for name in names), share]))
    return "\n".join([*lines, "", _measured_on(measured)])


def reuse_table(path: str | Path) -> str:
    """A markdown table of a reuse_*.json: time to the first token, cold and warm."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    lines = [_row(["model", "links", "tokens linked", "request", "cold", "warm", "times faster", "by tokens"])]
    lines.append(_row(["---", "---:", "---:", "---", *["---:"] * 4]))
    for result in measured["results"]:
        cold, warm = (f"{result[name]['milliseconds']:,.0f} ms" for name in ("cold", "warm"))
        ratios = [f"**{result['times_faster']:.0f}**", f"{result['by_tokens']:.0f}"]
        cells = [result["model"], str(result["links"]), f"{result['linked_tokens']:,}", result["shape"], cold, warm]
        lines.append(_row([*cells, *ratios]))
    on = measured["environment"]
    machine = on["gpu"] or f"{on['threads']} threads of {on['cpu']}"
    where = f"{measured['settings']['dtype']}, {machine}, torch {on['torch']}, {on['date'][:10]}"
    rounds = measured["settings"]["rounds"]
    medians = "One round" if rounds == 1 else f"Medians of {rounds} rounds"
    return "\n".join([*lines, "", f"{medians}, {where}."])


def cpu_step_table(path: str | Path) -> str:
    """A markdown table of cpu_step_cpu.json: tokens per second of every contestant, for each batch."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    results = measured["results"]
    lines = [_row(["", *(f"batch {result['batch']}" for result in results), "of read bandwidth"])]
    lines.append(_row(["---", *["---:"] * (len(results) + 1)]))
    for name in results[0]["contestants"]:
        speeds = [f"{result['contestants'][name]['tokens_per_second']:.0f}" for result in results]
        shares = [result["contestants"][name].get("share_of_read_bandwidth") for result in results]
        shown = ", ".join("" if share is None else f"{share:.0%}" for share in shares)
        lines.append(_row([name.replace("-", ", "), *speeds, shown.strip(", ")]))
    on, settings = measured["environment"], measured["settings"]
    return "\n".join(
        [
            *lines,
            "",
            f"Tokens/s of all sequences, {results[0]['model']}, random weights, greedy, context {settings['context']}, "
            f"medians of {settings['rounds']} rounds in turns, {on['threads']} threads of {on['cpu']}, "
            f"torch {on['torch']}, {on['date'][:10]}.",
        ]
    )


def busy_table(path: str | Path) -> str:
    """A markdown table of busy_cpu.json: tokens per second of every contestant beside other programs."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    speeds: dict[str, dict[str, float]] = {}
    for result in measured["results"]:
        speeds.setdefault(result["contestant"], {})[result["condition"]] = result["tokens_per_second"]
    conditions = list(next(iter(speeds.values())))
    lines = [_row(["", *conditions]), _row(["---", *["---:"] * len(conditions)])]
    for name, of in speeds.items():
        shares = {one: "" if one == "alone" else f" ({of[one] / of['alone']:.0%})" for one in conditions}
        shown = [f"{of[one]:.1f}{share}" for one, share in shares.items()]
        lines.append(_row([name.replace("-", ", "), *shown]))
    settings = measured["settings"]
    what = f"Tokens/s, {settings['size']}, context {settings['context']}, medians of {settings['rounds']} rounds"
    return "\n".join([*lines, "", f"{what}; {_threads(measured)}."])


def processors_table(path: str | Path) -> str:
    """A markdown table of processors_cpu.json: tokens per second decoded, and of a prompt, by instructions."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    kinds = [name for name in measured["results"][0] if name != "vectors"]
    lines = [_row(["", *kinds]), _row(["---", *["---:"] * len(kinds)])]
    for result in measured["results"]:
        of = [result[kind] for kind in kinds]
        shown = [f"{one['tokens_per_second']:.1f}, {one['prompt_tokens_per_second']:,.0f}" for one in of]
        lines.append(_row([result["vectors"], *shown]))
    settings = measured["settings"]
    what = f"Tokens/s that one sequence decodes, and of its prompt of {settings['context']}, {settings['size']}"
    return "\n".join([*lines, "", f"{what}, medians of {settings['rounds']} rounds; {_threads(measured)}."])


def host_step_table(path: str | Path) -> str:
    """A markdown table of host_step_cpu.json: what the host does in a step, for each number of requests."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    lines = [_row(["requests", "documents each reads", "µs a step", "µs a request"]), _row(["---:"] * 4)]
    for result in measured["results"]:
        lines.append(_row([f"{result[name]:,}" for name in ("batch", "links", "step_us", "request_us")]))
    on, settings = measured["environment"], measured["settings"]
    where = f"one core of {on['cpu']}, Python {on['python']}, {on['date'][:10]}"
    return "\n".join([*lines, "", f"Medians of {settings['rounds']} rounds of {settings['steps']} steps, {where}."])


def serve_load_table(path: str | Path) -> str:
    """A markdown table of serve_load.json: what clients of the server see, for each number of them."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    lines = [_row(["clients", "requests", "failed", "tokens/s", "to first token", "per token", "whole request"])]
    lines.append(_row(["---:"] * 7))
    for result in measured["results"]:
        times = [
            " / ".join(f"{result[name][at]:,.0f}" for at in ("p50", "p99"))
            for name in ("time_to_first_token_ms", "time_per_token_ms", "request_ms")
        ]
        counts = [str(result[name]) for name in ("clients", "requests", "failed")]
        lines.append(_row([*counts, f"{result['tokens_per_second']:.0f}", *times]))
    on = measured["environment"]
    where = f"{on['cores']} cores of {on['cpu']} for server and clients, torch {on['torch']}, {on['date'][:10]}"
    return "\n".join([*lines, "", f"Milliseconds, p50 / p99; the demo model, {where}."])


def serve_host_table(path: str | Path) -> str:
    """A markdown table of serve_host_cpu.json: tokens per second through a server beside a device of given speed."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    lines = [_row(["ms a step", "tokens/s of the device", "that come", "µs of CPU a token", "tokens at once"])]
    lines.append(_row(["---:"] * 5))
    for result in measured["results"]:
        most = result["device_tokens_per_second"]
        cells = ["any" if most is None else f"{most:,}", f"{result['tokens_per_second']:,}"]
        lines.append(_row([f"{result['step_ms']:g}", *cells, *(f"{result[name]:.0f}" for name in SERVED)]))
    on, settings = measured["environment"], measured["settings"]
    where = f"{on['cores']} cores of {on['cpu']} for server and clients, Python {on['python']}, {on['date'][:10]}"
    what = f"{settings['streams']} streams of {settings['tokens']} tokens, medians of {settings['rounds']} rounds"
    return "\n".join([*lines, "", f"{what}, {where}."])


def sizes_table(*paths: str | Path) -> str:
    """A markdown table of throughput_*_int8_cpu.json: one request, and ds2ds with eight, for each size of model."""
    lines = [_row(["model", "", "to first token", "per token", "of read bandwidth", "8 requests, tokens/s"])]
    lines.append(_row(["---", "---", *["---:"] * 4]))
    for path in paths:
        measured = json.loads(Path(path).read_text(encoding="utf-8"))
        ours, others = _of_size(measured)
        for name, cases in ours.items():
            one = cases["single"]
            first, each = (one[time]["median"] for time in ("time_to_first_token_ms", "time_per_token_ms"))
            many = f"{cases['batch-8']['tokens_per_second']['median']:.1f}"
            times = [f"{first:,.0f} ms", f"{each:.1f} ms"]
            lines.append(_row([_size(measured), f"ds2ds, {name}", *times, f"{one['floor']['share']:.0%}", many]))
        for name, one in others.items():
            times = [f"{one[time]:,.{digits}f} ms" for time, digits in _TIMES.items()]
            lines.append(_row([_size(measured), name, *times, "", ""]))
    on = measured["environment"]
    where = f"{on['threads']} threads of {on['cpu']}, torch {on['torch']}, {on['date'][:10]}"
    return "\n".join([*lines, "", f"A prompt of 64 tokens, greedy, medians; {where}."])


def workloads_table(*paths: str | Path) -> str:
    """A markdown table of throughput_*_cpu.json: every workload that was run, for each size of model."""
    lines = [_row(["model", "workload", "requests", "prompt", "to first token", "per token, p99", "tokens/s"])]
    lines.append(_row(["---", "---", *["---:"] * 5]))
    for path in paths:
        measured = json.loads(Path(path).read_text(encoding="utf-8"))
        size, ours = _size(measured), _of_size(measured)[0]["float32"]
        for name, one in ours.items():
            if name == "batch-1":
                continue  # the same as one request
            first, each = one["time_to_first_token_ms"]["median"], one["time_per_token_ms"]
            times = [f"{first / 1000:.2f} s", f"{each['median']:.1f} ms, {each['p99']:,.0f}"]
            prompt = f"{one['prompt_tokens']:,}"
            speed = f"{one['tokens_per_second']['median']:.1f}"
            lines.append(_row([size, name.partition("-")[0], str(one["requests"]), prompt, *times, speed]))
    on = measured["environment"]
    where = f"{on['threads']} threads of {on['cpu']}, torch {on['torch']}, {on['date'][:10]}"
    return "\n".join([*lines, "", f"Greedy, float32, random weights, {ours['single']['tokens']} tokens each; {where}."])


_TIMES = {"time_to_first_token_ms": 0, "time_per_token_ms": 1}


def _size(measured: dict[str, Any]) -> str:
    """The size of model of a throughput_*.json."""
    size: str = measured["results"][0]["name"].partition("[")[2].partition("-cpu-")[0]
    return size


def _of_size(measured: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """A throughput_*.json's results of ds2ds, by weights and workload, and those of others, by name."""
    ours: dict[str, dict[str, Any]] = {}
    others = {}
    for one in measured["results"]:
        test, _, case = one["name"].rstrip("]").partition("[")
        if test == "test_ds2ds":
            ours.setdefault("float32", {})[case.partition("-cpu-")[2]] = one
        elif test == "test_ds2ds_rounded":
            weights, _, workload = case.partition("-cpu-")[2].partition("-")
            ours.setdefault(weights, {})[workload] = one
        elif test == "test_ctranslate2":
            others[f"CTranslate2, {case.rpartition('-')[2]}"] = one
        else:
            others["transformers"] = one
    return ours, others


def sampling_table(path: str | Path) -> str:
    """A markdown table of sampling_cpu.json: microseconds of a call, for all rows."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    names = ("ds2ds", "NumPy", "torch", "torch.topk")
    lines = [_row(["logits", "way", "rows", *names]), _row(["---", "---", *["---:"] * 5])]
    for result in measured["results"]:
        times = [result["samplers"].get(name, {}).get("microseconds") for name in names]
        shown = ["" if time is None else f"{time:,.0f}" for time in times]
        lines.append(_row([result["logits"], result["way"], str(result["batch"]), *shown]))
    on = measured["environment"]
    where = f"{on['threads']} threads of {on['cpu']}, torch {on['torch']}, {on['date'][:10]}"
    vocab = measured["results"][0]["vocab"]
    what = f"Microseconds for all rows, of {vocab:,} float32 logits each, medians"
    return "\n".join([*lines, "", f'{what}; "NumPy" is the plain version, "torch" sorts; {where}.'])


def issue_slots_table(path: str | Path) -> str:
    """A markdown table of issue_slots.json: microseconds, counted and not measured."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    names = list(measured["results"][0]["kernels"])
    lines = [_row(["logits", "way", "vocabulary", *names, "all", "one read"]), _row(["---", "---", *["---:"] * 7])]
    for result in measured["results"]:
        each = [f"{result['kernels'][name]['microseconds']:.1f}" for name in names]
        both = f"{result['microseconds']:.0f}", f"{result['floor_microseconds']:.0f}"
        lines.append(_row([result["logits"], result["way"], f"{result['vocab']:,}", *each, *both]))
    rows, date = measured["results"][0]["batch"], measured["environment"]["date"][:10]
    return "\n".join([*lines, "", f"Microseconds for {rows} rows, counted for an H100 and not measured, {date}."])


def retention_table(path: str | Path, exponent: float = 0.8) -> str:
    """A markdown table of retention.json for one Zipf exponent: the share of tokens that was found computed."""
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    lines = [_row(["one-off requests", "arena, of the corpus", "LRU", "GDSF", "no policy can pass"])]
    lines.append(_row(["---:"] * 5))
    for result in measured["results"]:
        if result["exponent"] == exponent:
            hits = [f"{result['tokens'][name]:.1%}" for name in ("lru", "gdsf", "ceiling")]
            lines.append(_row([f"{result['once']:.0%}", f"{result['arena']:.0%}", *hits]))
    return "\n".join(lines)


def _speed(result: dict[str, Any], name: str) -> str:
    speed = result["contestants"][name]["tokens_per_second"]
    shown = f"{speed:.1f}" if speed >= 10 else f"{speed:.2f}"
    times = result["times_faster"].get(name)
    return f"**{shown}**" if times is None else f"{shown} ({times:.0f}×)" if times >= 10 else f"{shown} ({times:.2f}×)"


def _measured_on(measured: dict[str, Any]) -> str:
    on, settings = measured["environment"], measured["settings"]
    machine = on["gpu"] or f"{on['threads']} threads of {on['cpu']}"
    return (
        f"Tokens/s, one sequence, greedy, {settings['dtype']}, random weights, {machine}, torch {on['torch']}, "
        f"{on['date'][:10]}; in brackets how many times as fast ds2ds is. The last column is the weights, keys and "
        f"values that a token needs, by its time, and the share of what a plain sum over memory reads there."
    )


def _threads(measured: dict[str, Any]) -> str:
    on = measured["environment"]
    return f"{measured['settings']['threads']} threads of {on['cpu']}, torch {on['torch']}, {on['date'][:10]}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    reuse = [reuse_table(REUSE_CPU), reuse_table(REUSE_SWEEP_CPU)]
    rest = [retention_table(RETENTION), cpu_step_table(CPU_STEP), host_step_table(HOST_STEP)]
    rest += [sampling_table(SAMPLING), issue_slots_table(ISSUE_SLOTS), busy_table(BUSY), processors_table(PROCESSORS)]
    served = [
        serve_load_table(SERVE_LOAD),
        serve_host_table(SERVE_HOST),
        sizes_table(*SIZES),
        workloads_table(*WORKLOADS),
    ]
    print("\n\n".join([markdown_table(DECODE_CPU), *reuse, *rest, *served]))


if __name__ == "__main__":
    typer.run(main)
