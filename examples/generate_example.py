"""Write a document and what it links to: the shortest script around `ds2ds.Runtime`.

python examples/generate_example.py --model-path demo --corpus-path demo --prompt "# Incremental linker"
"""

from __future__ import annotations

import argparse
import sys

from ds2ds import DocumentCorpus, Ds2dsError, LinkClosed, Runtime, TokenWritten


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a document, and what its links lead to.")
    parser.add_argument("--model-path", default="demo", help='checkpoint folder; "demo" is packaged (default)')
    parser.add_argument("--corpus-path", default="demo", help='folder of a corpus, "demo" (default), or "none"')
    parser.add_argument("--prompt", default="# Incremental linker", help="how the document starts")
    parser.add_argument("--max-new-tokens", type=int, default=80, help="most tokens written in one document")
    parser.add_argument("--max-link-depth", type=int, default=1, help="how far links are followed")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token")
    parser.add_argument("--seed", type=int, default=None, help="the same seed gives the same text")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    runtime = Runtime.from_pretrained(options.model_path)
    corpus = None if options.corpus_path == "none" else DocumentCorpus(options.corpus_path)
    prompt = options.prompt
    if runtime.limits.has_headings and prompt.startswith("# ") and "\n" not in prompt:
        prompt += "\n\n"  # as the documents start that this model was trained on

    print(prompt, end="")
    events = runtime.stream(
        prompt,
        corpus=corpus,
        max_new_tokens=options.max_new_tokens,
        max_link_depth=options.max_link_depth,
        temperature=options.temperature,
        seed=options.seed,
    )
    root = None
    for event in events:
        root = root or event.title  # the first event opens the root
        if isinstance(event, TokenWritten) and event.title == root:
            print(event.text, end="", flush=True)
        elif isinstance(event, LinkClosed) and event.title == root:
            print(f" <{event.reason or event.outcome}>", end="", flush=True)

    result = event.result  # the last event is Done
    print("\n")
    for document in result.get_all_documents():
        print(f"{'  ' * document.depth}{document.title}: {document.source}, {len(document.tokens)} tokens")
        for grant in document.grants:
            print(f"{'  ' * document.depth}  reads {grant.title} from token {grant.position} on")
    trace = result.trace
    print(f"{trace.tokens_decoded} tokens written, {trace.tokens_prefilled} prefilled, {trace.seconds['total']:.2f} s")


if __name__ == "__main__":
    try:
        main()
    except Ds2dsError as error:
        sys.exit(f"error: {error}")
