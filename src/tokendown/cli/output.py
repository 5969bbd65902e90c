"""Where things go: results to stdout or files, the rest to stderr; errors as one line."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .._errors import RunError, TokendownError
from ..files import write_whole
from ..models.sources import out_of_memory

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def out() -> Console:
    """For results."""
    return Console(highlight=False)


def err() -> Console:
    """For progress, warnings and errors."""
    return Console(stderr=True, highlight=False)


def print_json(record: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(record, indent=2, allow_nan=False))


def warn(message: str) -> None:
    """One line on stderr."""
    err().print(f"note: {message}", markup=False, soft_wrap=True, style="yellow")


def save_texts(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Writes text files, replacing those of an earlier run once all are written.

    Args:
        folder: made if it is not there.
        texts: by name of the file.

    Raises:
        RunError: the folder cannot be written.
    """
    files = {folder / name: words for name, words in texts.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(files)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error
    return list(files)


@contextmanager
def politely(as_json: bool) -> Iterator[None]:
    """Turns what can go wrong into one line and an exit code.

    2 means that the arguments or files are wrong, 1 that something failed on the way, 130 that the
    user stopped it. With ``as_json`` stdout gets ``{"error": ...}`` as well.
    """
    try:
        yield
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "interrupted; nothing is half-written"
    except TokendownError as error:
        code = exit_code(error)
        message = " ".join(str(error).split())
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        code, message = FAILED, "out of memory; try a smaller --size or --dtype bfloat16"
    else:
        return
    err().print(f"error: {message}", markup=False, soft_wrap=True, style="red")
    if as_json:
        print_json({"error": message, "exit_code": code})
    raise typer.Exit(code)


def exit_code(error: BaseException) -> int:
    """What the command ends with."""
    if isinstance(error, TokendownError):
        return FAILED if isinstance(error, RunError) else WRONG_INPUT
    return INTERRUPTED


def end_with(error: BaseException, as_json: bool) -> NoReturn:
    """Ends a command that has printed what there is, and as JSON nothing more."""
    if as_json:
        raise typer.Exit(exit_code(error))
    raise error


@contextmanager
def steps_bar(label: str) -> Iterator[Any]:
    """A bar on stderr for as long as the block runs; yields ``advance(done, all)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = err()
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(escape(label), total=None)

        def advance(done: int, steps: int) -> None:
            progress.update(task, completed=done, total=steps)

        yield advance


@contextmanager
def loading(model: str) -> Iterator[None]:
    """A spinner on stderr in place of the hosts' own bars and remarks."""
    with err().status(escape(f"loading {model}")), hushed():
        yield


@contextmanager
def hushed() -> Iterator[None]:
    """Without the hosts' own bars and remarks."""
    with ExitStack() as undo:
        try:
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every retry is a line
            from transformers.utils import logging as transformers_logging

            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
            from diffusers.utils import logging as diffusers_logging

            diffusers_logging.disable_progress_bar()
            # later it has useful things to say, such as that a prompt is too long
            undo.callback(diffusers_logging.set_verbosity, diffusers_logging.get_verbosity())
            diffusers_logging.set_verbosity_error()
            undo.enter_context(warnings.catch_warnings())
            for kind in (FutureWarning, UserWarning):  # the hosts about their own arguments
                warnings.simplefilter("ignore", kind)
        except ImportError:
            pass  # the loader says what to install
        yield
