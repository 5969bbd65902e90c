"""One HTML file that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 32px 24px 64px; max-width: 900px; background: #fbfbfa;
  color: #1f2933; font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 6px; }
p { margin: 6px 0 12px; max-width: 74ch; } .lead { color: #52606d; }
figure { margin: 14px 0; padding: 14px; background: #fff; border: 1px solid #e4e7eb;
  border-radius: 8px; overflow-x: auto; } svg { display: block; }
figcaption { color: #52606d; font-size: 13px; margin-top: 8px; max-width: 74ch; }
.row { display: flex; flex-wrap: wrap; gap: 14px; }
.row figure { margin: 0; padding: 8px; } .row figcaption { margin-top: 4px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid #e4e7eb; }
th:first-child, td:first-child { text-align: left; } th { color: #52606d; font-weight: 600; }
"""


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{"".join(sections)}'
        "</body></html>\n"
    )


def section(title: str, words: str, *parts: str) -> str:
    """A headline, a paragraph, and what follows."""
    return f"<h2>{escape(title)}</h2><p>{escape(words)}</p>{''.join(parts)}"


def figure(svg: str, caption: str = "") -> str:
    """A plot and what to see in it."""
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{words}</figure>"


def row(figures: Sequence[str]) -> str:
    """Figures beside each other."""
    return f'<div class="row">{"".join(figures)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as they are given."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", cells) for cells in rows)
    return f"<figure><table>{line('th', head)}{body}</table></figure>"


def short_name(layer: str) -> str:
    """down_blocks.0.attentions.1.transformer_blocks.0.attn1 to down.0.1.0.attn1."""
    return (
        layer.replace("_blocks", "")
        .replace("_block", "")
        .replace("attentions.", "")
        .replace("transformer.", "")
    )
