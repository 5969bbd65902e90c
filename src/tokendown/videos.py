"""Films as files: animated PNG, which loses nothing, and MP4, where ffmpeg is at hand.

An animated PNG is a PNG file whose further frames are in chunks that other readers skip: it holds
every pixel as it was made, and text as any PNG does. An MP4 file is a row of boxes, and a reader
skips a box of a kind that it does not know: the settings are in a last one of their own.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any, BinaryIO

import numpy
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ._errors import ConfigError, RunError

FORMATS = ("png", "mp4")

_UUID = b"tokendown/json/1"  # 16 bytes, as a box of type uuid has them
_MOST = 1 << 20  # bytes of settings; more is not ours


def check_format(name: str) -> None:
    """Whether films can be written so here.

    Raises:
        ConfigError: an unknown format, or ffmpeg is missing.
    """
    if name not in FORMATS:
        raise ConfigError(f"expected a format of {', '.join(FORMATS)}, got {name!r}")
    if name == "mp4" and util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            "MP4 files need an extra: pip install 'tokendown[video]' (imageio-ffmpeg is missing); "
            "--format png needs none"
        )


def animated_png(frames: Sequence[Image.Image], fps: float, info: PngInfo) -> bytes:
    """A PNG file of all frames, played for ever; one frame is a plain PNG file.

    Args:
        frames: RGB, of one size. Equal neighbours become one frame that is shown longer.
        fps: frames a second.
        info: text chunks.
    """
    file = io.BytesIO()
    if len(frames) == 1:
        frames[0].save(file, format="PNG", pnginfo=info)
    else:
        frames[0].save(
            file, format="PNG", pnginfo=info, save_all=True, append_images=frames[1:],
            duration=1000.0 / fps, loop=0,
        )  # fmt: skip
    return file.getvalue()


def mp4(frames: Sequence[Image.Image], fps: float, settings: str) -> bytes:
    """An H.264 file with the settings in its last box.

    Args:
        frames: RGB, of one size; an odd side gets one more line of black, as the codec needs.
        fps: frames a second.
        settings: text, at most a mebibyte.

    Raises:
        RunError: ffmpeg fails.
    """
    import imageio_ffmpeg

    width, height = (side + side % 2 for side in frames[0].size)
    with tempfile.TemporaryDirectory(prefix="tokendown-") as folder:
        path = Path(folder) / "film.mp4"
        writer = imageio_ffmpeg.write_frames(
            str(path), (width, height), fps=fps, codec="libx264", quality=8, macro_block_size=2
        )
        try:
            writer.send(None)
            for frame in frames:
                writer.send(_padded(frame, width, height))
            writer.close()
        except (OSError, RuntimeError) as error:
            raise RunError(f"ffmpeg could not write the film: {error}") from error
        return path.read_bytes() + settings_box(settings)


def settings_box(settings: str) -> bytes:
    """What is added to an MP4 file."""
    payload = _UUID + settings.encode()
    return (8 + len(payload)).to_bytes(4, "big") + b"uuid" + payload


def mp4_settings(path: Path) -> str | None:
    """The text that :func:`mp4` put into a file, or None where there is none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no MP4 file.
    """
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        while (start := file.tell()) < end:
            kind, size = _box(file, end - start)
            body = min(size, _MOST)
            if kind == b"uuid" and file.read(len(_UUID)) == _UUID:
                return file.read(start + body - file.tell()).decode()
            file.seek(start + size)
    return None


def _box(file: BinaryIO, left: int) -> tuple[bytes, int]:
    """Type and whole length of the box that begins here. Source: ISO/IEC 14496-12, section 4.2."""
    head = file.read(8)
    size, kind = int.from_bytes(head[:4], "big"), head[4:]
    if size == 1:
        size = int.from_bytes(file.read(8), "big")
    size = size or left  # 0 means: to the end of the file
    if len(kind) < 4 or not 8 <= size <= left:
        raise ValueError("not a row of boxes")
    return kind, size


def _padded(frame: Image.Image, width: int, height: int) -> Any:
    canvas = Image.new("RGB", (width, height))
    canvas.paste(frame, (0, 0))
    return numpy.ascontiguousarray(numpy.asarray(canvas))
