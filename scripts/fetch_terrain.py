"""Fetches the trained network that the tests marked ``weights`` and ``paper/`` use.

The network is one ONNX file inside the wheel of adaptive-terrain-diffusion 0.4.1 (MIT). pip
downloads the wheel by name from whatever index it is configured for, without dependencies, and
only that file is unpacked, to ``.cache/terrain/``. Nothing is installed, no code of the wheel runs.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "adaptive-terrain-diffusion==0.4.1"  # 0.4.2 passes noise through
MEMBER = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
SHA256 = "230f0ec1fae9c5e196aff0c887b7b2a7f57b9b240f8481dd5daa8c3333bb34ec"
TARGET = Path(__file__).resolve().parent.parent / ".cache" / "terrain" / Path(MEMBER).name


def main() -> None:
    """Leaves the verified file at ``TARGET``; does nothing if it is there already."""
    if TARGET.exists() and _sha256(TARGET) == SHA256:
        return
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET.parent) as folder:
        unpacked = _unpack(_download(Path(folder)), Path(folder) / TARGET.name)
        found = _sha256(unpacked)
        if found != SHA256:
            raise SystemExit(f"fetch_terrain: {MEMBER} has sha256 {found}, expected {SHA256}")
        unpacked.replace(TARGET)  # atomic: a half-written file never looks complete
    print(f"fetched {TARGET.relative_to(TARGET.parents[2])}")


def _download(folder: Path) -> Path:
    """The wheel of ``REQUIREMENT``, in ``folder``."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", ":none:", "-d", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip left no wheel"]
        raise SystemExit(f"fetch_terrain: pip could not download {REQUIREMENT}: {lines[-1]}")
    return wheels[0]


def _unpack(wheel: Path, target: Path) -> Path:
    """Copies the one member of the wheel to ``target``."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(MEMBER))
    except (KeyError, zipfile.BadZipFile) as error:
        raise SystemExit(f"fetch_terrain: {wheel.name} is not as expected: {error}") from None
    return target


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
