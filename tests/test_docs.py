"""Pages that are made from the code are the pages that are committed."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_api_page_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "api_docs.py"))["render"]()
    assert (ROOT / "docs" / "api.md").read_text() == made, "run: python scripts/api_docs.py"


def test_tables_are_those_of_the_result_files() -> None:
    table = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    for name in table["PAGES"]:
        page = (ROOT / name).read_text()
        assert table["fill"](page) == page, (
            f"{name} is out of date; run: python benchmarks/table.py"
        )
