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
        with loading("diffusers"):
            need_diffusers()
            installed, devices = checks.installed(), checks.devices()
            backends = checks.backends()
            results = checks.self_check()
        if as_json:
            record = {"installed": installed, "devices": devices, "backends": backends}
            print_json({**record, "self_check": results})
        else:
            _print(installed, devices, backends)
            console = out()
            console.print("\nself-check")
            for check, passed in results.items():
                console.print(f"  {'pass' if passed else 'FAIL'}  {check}")
    if not all(results.values()):
        raise typer.Exit(FAILED)


def _print(installed: dict[str, str | None], devices: list[str], backends: dict[str, str]) -> None:
    console = out()
    for title, rows in (
        ("installed", {name: found or "-" for name, found in installed.items()}),
        ("attention backends", backends),
    ):
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows.items():
            table.add_row(name, text, style="green" if text == "works" else None)
        console.print(table)
    console.print("devices")
    for line in devices:
        console.print(f"  {line}", markup=False)
