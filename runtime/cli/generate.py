"""``ds2ds generate``: a prompt becomes a linked set of documents, shown while they are written."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ds2ds.cli.asking import TerminalReader
from ds2ds.cli.following import follow, start
from ds2ds.cli.loading import load_runtime
from ds2ds.cli.pictures import check_pictures, require_attention, write_pictures
from ds2ds.cli.progress import open_corpus_telling, progress_bar
from ds2ds.cli.rendering import PlainRenderer, Renderer, TerminalRenderer
from ds2ds.cli.summary import document_tree, figures, remark
from ds2ds.corpus.document_corpus import DEMO, DocumentCorpus
from ds2ds.corpus.resolving.making import prepare_resolvers
from ds2ds.corpus.resolving.specification import resolver_order
from ds2ds.documents.link_formats import link_format as find_format
from ds2ds.errors import ConfigError
from ds2ds.generation.text_checks import check_title

if TYPE_CHECKING:
    from ds2ds.backend import Backend
    from ds2ds.generation.choices import OnLink


def _setting(panel: str, help: str) -> Any:
    """An option for a field of GenerationConfig; not given, the field keeps its default."""
    return typer.Option(help=help, rich_help_panel=panel)


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help='How the root document starts; "-" reads it from standard input. For a model that knows its documents '
            'by a heading, as the demo model does, a prompt that is only a heading ("# Compiler") is completed by the '
            "blank line below it."
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help='Checkpoint folder; "demo" is packaged.')] = DEMO,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            "-c",
            help='Folder of the corpus that links lead to; "demo" is FOLDOC, and what the demo model takes if none is '
            'given; "none": all targets are written by the model.',
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the root document. The prompt then comes below its heading.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the documents as markdown, their graph (.json, .svg, .html) and result.json; made whole.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to draw the link graph: .html, texts and all, or .svg.")
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the root's tokens read, by layer and head: .html to explore, .png or .svg a heat map, or .npz.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Let --save replace a folder that holds something else, --picture and --attention a file."
        ),
    ] = False,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Ask at each link, on the terminal: follow it, skip it, or write the text yourself.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the weights: float32, bfloat16, float16 or float64; default float32 on a CPU, bfloat16 on a GPU."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = None,
    weights: Annotated[
        str | None,
        _setting("Memory", "int8: weights rounded to 8 bits; int8_dynamic: what they are multiplied with, too."),
    ] = None,
    arena_tokens: Annotated[
        int | None, _setting("Memory", "Tokens that the KV arena holds, at least 1; default: 1 GiB, half a free GPU.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Documents prefilled by `ds2ds cache warm`, with this model.",
            rich_help_panel="Memory",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, _setting("Length", "Most tokens written in one document, at least 1; default 100.")
    ] = None,
    max_tokens_per_document: Annotated[
        int | None, _setting("Length", "Most tokens of one document, prompt and all, at least 1; default 512.")
    ] = None,
    max_context_length: Annotated[
        int | None, _setting("Length", "Most tokens in view, at most the model's max_seq_len; default 2048 or that.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        _setting("Length", "String that ends a document and is cut from it; may be given more than once."),
    ] = None,
    stop_token_ids: Annotated[
        list[int] | None,
        _setting("Length", "Token that ends a document and is not in its text; may be given more than once."),
    ] = None,
    ignore_eos: Annotated[bool | None, _setting("Length", "Write on after EOS; default False.")] = None,
    eos_token_id: Annotated[
        int | None, _setting("Length", "Token that ends a document, 0 or more; default 50256, or the tokenizer's.")
    ] = None,
    seed: Annotated[
        int | None, _setting("Sampling", "The same seed gives the same text, 64 bits; default: another one each time.")
    ] = None,
    temperature: Annotated[
        float | None, _setting("Sampling", "0 or more; 0 takes the likeliest token; default 1.0.")
    ] = None,
    top_k: Annotated[
        int | None, _setting("Sampling", "Sample among the k likeliest tokens, 0 or more; default 0: among all.")
    ] = None,
    top_p: Annotated[
        float | None,
        _setting("Sampling", "Sample among the likeliest tokens that together reach this, 0 < p <= 1; default 1.0."),
    ] = None,
    min_p: Annotated[
        float | None,
        _setting("Sampling", "Leave out tokens less likely than this share of the likeliest, 0 to 1; default 0.0."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, _setting("Sampling", "Makes what the document has less likely, above 0; default 1.0: off.")
    ] = None,
    logprobs: Annotated[
        bool | None,
        _setting("Sampling", "Put every token's log-probability into --json and --save; default False."),
    ] = None,
    prompt_logprobs: Annotated[
        bool | None, _setting("Sampling", "Those of the prompt's tokens, too; default False.")
    ] = None,
    top_logprobs: Annotated[
        int | None, _setting("Sampling", "Beside each, those of as many of the likeliest tokens, 0 to 20; default 0.")
    ] = None,
    link_format: Annotated[
        str | None,
        _setting(
            "Links",
            "How links are written: markdown, wikilinks, python, latex, latex+ref, arxiv, null (none), or a format of "
            "another package; default: as the model was trained.",
        ),
    ] = None,
    num_beams: Annotated[
        int | None,
        _setting(
            "Beam search", "Hypotheses that are kept, 1 or more; default 1: tokens are drawn, nothing is searched."
        ),
    ] = None,
    length_penalty: Annotated[
        float | None,
        _setting("Beam search", "Above 0 favours long texts, below 0 short ones, -10 to 10; default 1.0."),
    ] = None,
    early_stopping: Annotated[
        str | None,
        typer.Option(
            help="True: end once num-beams texts are finished; False: and none in progress would beat the worst of "
            "them as it stands; never: and none can, whatever it becomes; default False.",
            callback=lambda value: {"true": True, "false": False}.get(str(value).lower(), value),
            rich_help_panel="Beam search",
        ),
    ] = None,
    num_return_sequences: Annotated[
        int | None,
        _setting("Beam search", "Put so many of the best into --json and --save, at most num-beams; default 1."),
    ] = None,
    max_link_depth: Annotated[
        int | None,
        _setting("Links", "How far links are followed, 0 (not at all) or more; the root is at 0; default 1."),
    ] = None,
    max_auxiliary_documents: Annotated[
        int | None, _setting("Links", "Most documents in view besides the root, 0 or more; default 5.")
    ] = None,
    allow_corpus_fallback: Annotated[
        bool | None, _setting("Links", "Write what the corpus lacks; default True.")
    ] = None,
    allow_recursive_links: Annotated[
        bool | None, _setting("Links", "Follow links of documents other than the root; default True.")
    ] = None,
    process_prompt_links: Annotated[bool | None, _setting("Links", "Follow links in the prompt; default True.")] = None,
    title_resolution: Annotated[
        str | None,
        _setting(
            "Links",
            "How a link's target finds its document, in order, with commas: exact, folded, redirects[=FILE], "
            "edit[:MINIMUM], embeddings=MODEL[:MINIMUM]; default exact.",
        ),
    ] = None,
    eviction_policy: Annotated[
        str | None,
        _setting(
            "Links",
            "Which document leaves when a new one finds no room: drop_oldest, least_recently_linked, largest_first, "
            "or stop_new: the new one stays out; default drop_oldest.",
        ),
    ] = None,
) -> None:
    """Write a document and follow its links: into the corpus, or by writing what the corpus lacks.

    On a terminal the text is shown as it is written, then the tree of all documents.

    Piped, standard output gets the plain text of the root and nothing else.
    """
    from ds2ds.generation.save import check_folder, save_result

    if interactive:
        _require_terminal(as_json)
    text = _read_prompt(prompt, title)
    if save is not None:
        used = [path for path in (model, corpus, cache) if path not in (None, DEMO, "none")]
        check_folder(save, force=force, used=used)
    check_pictures(picture, attention, save, force=force)
    terminal = sys.stdout.isatty() and not as_json
    console = Console() if terminal else Console(stderr=True)
    with _open_corpus(corpus, model) as opened, contextlib.ExitStack() as loading:
        settings = _settings(context)
        _check(settings, title, link_format)
        if opened is not None and title_resolution is not None:
            with progress_bar("titles", once_told=True) as progress:
                prepare_resolvers(opened, resolver_order(title_resolution), progress)
        if terminal:
            loading.enter_context(console.status("loading the model"))
        memory = {"weights": weights, "arena_tokens": arena_tokens}
        backend: Backend = load_runtime(model, device, dtype, cache, link_format=link_format, **memory)
        if attention is not None:
            require_attention(backend)
        renderer: Renderer | None = None
        reader: OnLink | None = None
        if terminal:
            renderer = shown = TerminalRenderer(console, settings.get("stop", ()), backend.link_format)
            reader = TerminalReader(console, shown.interrupt) if interactive else None
        elif not as_json:
            renderer = PlainRenderer(sys.stdout, settings.get("stop", ()))
        events = start(backend, text, title, opened, settings, reader)
        loading.close()
        result, written = follow(events, renderer)
    if as_json:  # first, so that a folder that cannot be written does not cost the result
        typer.echo(json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False))
    if save is not None:
        save_result(result, save, force=force)
    if as_json:
        write_pictures(backend, result, picture, attention)
        return
    console.print()
    console.print(document_tree(result))
    console.print(figures(result, written), style="dim", highlight=False, soft_wrap=not console.is_terminal)
    if (note := remark(result, written)) is not None:
        console.print(note, style="yellow", highlight=False, soft_wrap=not console.is_terminal)
    write_pictures(backend, result, picture, attention)
    for path in (save, picture, attention):
        if path is not None:
            console.print(Text(f"saved to {path}", style="dim"), soft_wrap=True)


def _require_terminal(as_json: bool) -> None:
    """Raises ConfigError where nobody can be asked."""
    if as_json:
        raise ConfigError(
            "--interactive shows what it asks about: it does not go with --json; --save writes result.json"
        )
    for stream, name in ((sys.stdin, "input"), (sys.stdout, "output")):
        if not stream.isatty():
            raise ConfigError(f"--interactive asks on the terminal, and standard {name} is none")


def _read_prompt(prompt: str | None, title: str | None) -> str:
    """The prompt's text; none is needed where a title is given.

    Raises:
        ConfigError: there is neither, or it is not UTF-8.
    """
    if prompt is None and title is None:
        raise ConfigError('give a prompt, as in: ds2ds generate "# Compiler"')
    try:
        if prompt == "-":
            prompt = sys.stdin.read().removesuffix("\n")
        for given in (prompt, title):
            (given or "").encode()
    except UnicodeError as error:
        raise ConfigError("the prompt and the title must be UTF-8 text") from error
    return prompt or ""


def _open_corpus(corpus: str | None, model: str) -> contextlib.AbstractContextManager[DocumentCorpus | None]:
    if corpus is None:
        corpus = DEMO if model == DEMO else "none"
    return contextlib.nullcontext() if corpus == "none" else open_corpus_telling(corpus)


def _check(settings: dict[str, Any], title: str | None, link_format: str | None) -> None:
    """Whether a Runtime will take these: told before a large model is loaded.

    Raises:
        ConfigError: one of them is wrong.
    """
    from ds2ds.generation.generation_config import GenerationConfig

    GenerationConfig(**settings)
    if title is not None:
        check_title("title", title)
    if link_format is not None:
        find_format(link_format)


def _settings(context: typer.Context) -> dict[str, Any]:
    """The fields of GenerationConfig that were given as options. The device is the runtime's."""
    from ds2ds.generation.generation_config import GenerationConfig

    fields = GenerationConfig.__dataclass_fields__.keys() - {"device"}
    given = {name: context.params[name] for name in fields}
    return {name: value for name, value in given.items() if value not in (None, (), [])}
