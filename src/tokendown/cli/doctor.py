"""``tokendown doctor``: what is installed, what works here, and a short self-check."""

from __future__ import annotations

import typer
from rich.table import Table

from .. import doctor as checks
from ..models.sources import need_diffusers
from . import options as opt
from .output import FAILED, loading, out, politely, print_json


def doctor(as_json: opt.Json = False) -> None:
    """Say what is installed and which attention backends work here, and check the patch."""
    with politely(as_json):
        installed, devices = checks.installed(), checks.devices()
        if not as_json:  # first, as it may explain why the rest fails
            _print_table("installed", {name: found or "-" for name, found in installed.items()})
            _print_lines("devices", devices)
        with loading("diffusers"):
            need_diffusers()
            backends = checks.backends()
            results = checks.self_check()
        if as_json:
            record = {"installed": installed, "devices": devices, "backends": backends}
            print_json({**record, "self_check": results})
        else:
            _print_table("attention backends", backends)
            _print_lines(
                "self-check",
                [f"{'pass' if passed else 'FAIL'}  {check}" for check, passed in results.items()],
            )
    if not all(results.values()):
        raise typer.Exit(FAILED)


def _print_table(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, text, style="green" if text == "works" else None)
    out().print(table)


def _print_lines(title: str, lines: list[str]) -> None:
    console = out()
    console.print(title)
    for line in lines:
        console.print(f"  {line}", markup=False)
    console.print()
