"""Text files that are there whole, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_whole(texts: Mapping[Path, str]) -> None:
    """Writes files of one folder, replacing earlier ones once all are written.

    Args:
        texts: by path; the folder exists.

    Raises:
        OSError: one cannot be written.
    """
    drafts = {path: path.with_name(f".{path.name}.tmp") for path in texts}
    try:
        for path, text in texts.items():
            drafts[path].write_text(text, encoding="utf-8")
        for path, draft in drafts.items():
            draft.replace(path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
