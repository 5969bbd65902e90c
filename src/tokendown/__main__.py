"""``python -m tokendown`` is ``tokendown``."""

from .cli import main

main()
