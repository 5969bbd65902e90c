"""docs/compatibility.md says what the markers of the tests say."""

from __future__ import annotations

from collections import Counter

from scripts import compat_table


def test_the_committed_table_is_in_step_with_the_markers():
    text = compat_table.TABLE.read_text(encoding="utf-8")
    assert compat_table.table() in text, "run python scripts/compat_table.py"


def test_every_test_is_in_the_table(request):
    """What pytest collected here, against what the script reads."""
    marked = {
        (item.path.name, item.originalname): item.get_closest_marker("compat")
        for item in request.session.items
        if item.path.parent == compat_table.TESTS and item.path.name != "test_table.py"
    }
    assert all(marked.values())
    rows = Counter((row.file, row.feature) for row in compat_table.rows())
    collected = Counter((file, mark.args[0]) for (file, _), mark in marked.items())
    assert collected <= rows
    assert len(set(compat_table.rows())) == sum(rows.values()), "two rows are alike"
