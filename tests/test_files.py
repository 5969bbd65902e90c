"""Files are written whole: a failure leaves those of before, and no drafts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokendown.files import write_whole


def test_earlier_files_are_replaced_together(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_whole({one: "1", two: "2"})
    write_whole({one: "3", two: "4"})
    assert (one.read_text("utf-8"), two.read_text("utf-8")) == ("3", "4")
    with pytest.raises(OSError, match="gone"):
        write_whole({one: "5", tmp_path / "gone" / "two": "6"})
    assert one.read_text("utf-8") == "3"
    assert sorted(tmp_path.iterdir()) == [one, two]
