"""A scoreboard as one page that needs no other file, and as Markdown."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ssm_metarl_gym.experiments.report import format_markdown
from ssm_metarl_gym.experiments.scoreboard.figures import Table
from ssm_metarl_gym.files import replacing

__all__ = ["Page", "write_markdown", "write_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --strong: #2563eb; --tint: #16a34a; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 88rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 1rem 0 .3rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem .9rem; margin: 1rem 0; }
a { color: var(--strong); }
figure { margin: 1rem 0; }
figure img { max-width: 100%; background: #fff; border-radius: .4rem; }
figcaption, .note { color: color-mix(in srgb, currentColor 65%, transparent); font-size: .92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
th { white-space: normal; vertical-align: bottom; }
.text { text-align: left; white-space: normal; }
.tinted { background: color-mix(in srgb, var(--tint) calc(var(--share) * 45%), transparent); }
tbody tr:hover { background: var(--soft); }
td b { font-weight: 650; }
small { opacity: .65; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; border-radius: .4rem; }
"""


class Page(NamedTuple):
    """What a page shows.

    Attributes:
        title: The heading.
        introduction: What stands below it, and how the tables are to be read, a point each.
        tables: The tables.
        pictures: Of each family its picture of mean returns, in PNG.
        command: The command that makes the page again.
    """

    title: str
    introduction: Sequence[str]
    tables: Sequence[Table]
    pictures: Mapping[str, Path]
    command: str


def write_markdown(page: Page, path: Path) -> None:
    """Write a page in Markdown into the folder of its pictures, in place of an earlier one."""
    points = "\n".join(f"- {point}" for point in page.introduction)
    parts = [f"# {page.title}", points, f"Made by `{page.command}`."]
    for group, of_group in _groups(page.tables).items():
        parts.append(f"## {group}")
        if group in page.pictures:
            parts.append(f"![{_caption(group)}](./{quote(page.pictures[group].name)})")
        for table in of_group:
            parts += [f"### {_title_in_group(table)}", format_markdown(table.header, table.rows)]
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def write_page(page: Page, path: Path) -> None:
    """Write a page in HTML, with the pictures inside, in place of an earlier one."""
    groups = _groups(page.tables)
    links = " ".join(f'<a href="#{_anchor(group)}">{html.escape(group)}</a>' for group in groups)
    first, *others = map(html.escape, page.introduction)
    points = "".join(f"<li>{point}</li>" for point in others)
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(page.title)}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>',
        f"<h1>{html.escape(page.title)}</h1><p>{first}</p>",
        f"<details><summary>How to read this</summary><ul>{points}</ul></details><nav>{links}</nav>",
    ]
    for group, of_group in groups.items():
        parts.append(f'<h2 id="{_anchor(group)}">{html.escape(group)}</h2>')
        if group in page.pictures:
            parts.append(_as_figure(page.pictures[group], _caption(group)))
        parts += map(_as_html, of_group)
    parts.append(f'<p class="note">Made by</p><pre>{html.escape(page.command)}</pre></body></html>')
    with replacing(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _as_figure(picture: Path, text: str) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    caption = html.escape(text)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _as_html(table: Table) -> str:
    columns = list(zip(*table.rows, strict=True))
    is_text = [not any(map(_is_number, column)) for column in columns]
    shares = [_shares(column) if table.is_tinted else {} for column in columns]
    classes = [' class="text"' if each else "" for each in is_text]
    header = "".join(
        f'<th scope="col"{of_column}>{_may_break(html.escape(cell))}</th>'
        for cell, of_column in zip(table.header, classes, strict=True)
    )
    rows = []
    for row in table.rows:
        cells = []
        for cell, of_column, of_cells in zip(row, classes, shares, strict=True):
            tint = f' class="tinted" style="--share: {of_cells[cell]:.2f}"' if cell in of_cells else of_column
            cells.append(f"<td{tint}>{_as_cell(cell)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h3>{html.escape(_title_in_group(table))}</h3><div class="scroll">{body}</div>'


def _as_cell(cell: str) -> str:
    """A mean stands out from its interval."""
    mean, bracket, interval = html.escape(cell).partition(" [")
    return f"<b>{mean}</b> <small>[{interval}</small>" if bracket else mean


def _may_break(name: str) -> str:
    """A name in CamelCase, which a narrow column may break between its words."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "<wbr>", name)


def _is_number(cell: str) -> bool:
    return bool(re.match(r"-?\d", cell))


def _shares(cells: Sequence[str]) -> dict[str, float]:
    """The place of each number between the least and the greatest, from 0 to 1.

    The scale spans at least a tenth of the greatest one, so that small differences are hardly coloured.
    """
    values = {cell: float(cell.rstrip("*")) for cell in cells if _is_number(cell)}
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    width = max(high - low, 0.1 * abs(high)) or 1.0
    return {cell: 1.0 - (high - value) / width for cell, value in values.items()}


def _groups(tables: Sequence[Table]) -> dict[str, list[Table]]:
    """Tables by the family that they are of, or by what else they are about."""
    groups: dict[str, list[Table]] = {}
    for table in tables:
        groups.setdefault(table.title.partition(": ")[0], []).append(table)
    return groups


def _title_in_group(table: Table) -> str:
    title = table.title.partition(": ")[2] or table.title
    return title[0].upper() + title[1:]


def _caption(group: str) -> str:
    return f"{group}: mean return and 95 % interval, and each seed"


def _anchor(group: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in group.lower())
