"""Fetch the two npm packages by name and keep the few files of them that training reads."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from .config import CACHE

PACKAGES = ("@lobehub/fluent-emoji-3d@1.1.0", "emoji-datasource-google@16.0.0")
NAMES = CACHE / "data" / "emoji.json"
PICTURES = CACHE / "data" / "pictures.tar"


def fetch() -> None:
    """Leaves data/emoji.json and data/pictures.tar (16 MB), all that a run needs as input."""
    if NAMES.exists() and PICTURES.exists():
        return
    raw = CACHE / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    NAMES.parent.mkdir(parents=True, exist_ok=True)
    pictures, names = (_pack(package, raw) for package in PACKAGES)
    _repack(pictures, PICTURES)
    with tarfile.open(names) as archive:
        NAMES.write_bytes(archive.extractfile("package/emoji.json").read())


def _pack(package: str, folder: Path) -> Path:
    """`npm pack` prints the name of the archive it wrote."""
    done = subprocess.run(
        ["npm", "pack", package, "--silent"], cwd=folder, check=True, capture_output=True, text=True
    )
    return folder / done.stdout.strip().splitlines()[-1]


def _repack(source: Path, target: Path) -> None:
    """Only the webp files, under their code points; they are compressed already."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            if member.name.endswith(".webp"):
                data = old.extractfile(member)
                member.name = Path(member.name).name
                new.addfile(member, data)


if __name__ == "__main__":
    fetch()
