"""One self-contained HTML page."""

import base64
import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl_vae.report.files import columns_of, write_bytes

__all__ = ["Section", "html_page"]

_CSS = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222; }
img { max-width: 100%; } figure { margin: 1rem 0; }
table { border-collapse: collapse; } th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page: a heading, paragraphs, figures (paths of PNG files), and a table.

    Args:
        heading: of the section.
        text: paragraphs, apart by empty lines.
        figures: PNG files, which the page will hold; the alternative text is the file's name.
        table: rows with the same keys.
    """

    heading: str
    text: str = ""
    figures: Sequence[str | Path] = ()
    table: Sequence[Mapping[str, Any]] = ()

    def html(self) -> str:
        """The section as HTML."""
        parts = [f"<h2>{html.escape(self.heading)}</h2>"]
        parts += [f"<p>{html.escape(p)}</p>" for p in self.text.split("\n\n") if p.strip()]
        parts += [_html_table(self.table)] if self.table else []
        return "\n".join([*parts, *map(_html_figure, self.figures)])


def html_page(title: str, sections: Iterable[Section], path: str | Path) -> Path:
    """One self-contained page: figures inside, no scripts."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_CSS}</style>'
    body = "\n".join(section.html() for section in sections)
    body = f"<h1>{html.escape(title)}</h1>\n{body}"
    page = f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'
    return write_bytes(page.encode(), path)


def _html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = columns_of(rows)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = ["".join(_html_cell(row.get(column, "")) for column in columns) for row in rows]
    return "\n".join(["<table>", f"<tr>{head}</tr>", *(f"<tr>{cells}</tr>" for cells in body), "</table>"])


def _html_cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.5g}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def _html_figure(path: str | Path) -> str:
    content = base64.b64encode(Path(path).read_bytes()).decode()
    return f'<figure><img alt="{html.escape(Path(path).stem)}" src="data:image/png;base64,{content}"></figure>'
