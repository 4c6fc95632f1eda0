"""Progress on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ds2ds.corpus.document_corpus import DocumentCorpus

_LINES = 10


@contextlib.contextmanager
def progress_bar(what: str, *, once_told: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with (done, of how many).

    Args:
        once_told: for what is rarely to be done: there is no bar before the first call.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        said = 0

        def say(done: int, total: int) -> None:
            nonlocal said
            if done * _LINES // total > said:
                said = done * _LINES // total
                console.print(f"{what}: {done:,} of {total:,}", highlight=False, soft_wrap=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with contextlib.ExitStack() as shown:
        bar = Progress(*columns, console=console, transient=True)
        task = bar.add_task(what, total=None)
        if not once_told:
            shown.enter_context(bar)

        def show(done: int, total: int) -> None:
            if not bar.live.is_started:
                shown.enter_context(bar)
            bar.update(task, completed=done, total=total)

        yield show


def open_corpus_telling(path: str) -> DocumentCorpus:
    """Open a corpus; telling of it while it is indexed, as it is once, where it is large."""
    with progress_bar("indexing the corpus, percent", once_told=True) as progress:
        return DocumentCorpus(path, progress)
