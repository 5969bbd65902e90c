"""The ``tokendown`` command; typer and rich come with the extra ``tokendown[cli]``."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

_EXTRA = {"typer", "rich", "PIL"}


def main() -> None:
    """Runs the command line, or says what to install."""
    try:
        from .app import app
    except ImportError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        raise SystemExit(
            "the command line needs an extra: pip install 'tokendown[cli]' "
            f"({error.name} is missing)"
        ) from None
    except KeyboardInterrupt:  # the imports take seconds
        print("error: interrupted; nothing is half-written", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    signal.signal(signal.SIGTERM, _stop)
    app(prog_name="tokendown")


def _stop(*_: object) -> NoReturn:
    """Ends like Ctrl-C does: half-written files are removed on the way out."""
    sys.exit(128 + signal.SIGTERM)
