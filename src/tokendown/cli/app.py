"""The sub-commands under one name."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from .analyze import analyze
from .bench import bench
from .compare import compare
from .doctor import doctor
from .generate import generate
from .summary import summary
from .tune import tune

app = typer.Typer(
    help="Fewer keys and values for the self-attention of diffusion models, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(compare)
app.command()(summary)
app.command()(bench)
app.command()(analyze)
app.command()(tune)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokendown {version('tokendown')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass
