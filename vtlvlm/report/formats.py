"""Two more formats of tables: LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import re

from vtlvlm.report.tables import Table
from vtlvlm.system.text import cell, shown

_SPECIAL = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$",
    "–": "--", "—": "---", "…": r"\dots{}", "·": r"$\cdot$", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip


def latex(text: str) -> str:
    """Text that LaTeX typesets literally, on one line."""
    return "".join(_SPECIAL.get(mark, mark) for mark in shown(text))


def as_latex(table: Table) -> str:
    """A ``table`` environment with rules of booktabs (``\\usepackage{booktabs}``), without vertical lines."""
    columns = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [r"\begin{table}", r"\centering"]
    if table.caption:
        lines.append(rf"\caption{{{latex(table.caption)}}}")
    if table.name:
        lines.append(rf"\label{{tab:{re.sub('[^A-Za-z0-9-]+', '-', table.name).strip('-')}}}")
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row([latex(cell) for cell in table.header]), r"\midrule"]
    for number, row in enumerate(table.rows):
        if number in table.headings:
            lines += [r"\addlinespace"] * bool(number)
            lines.append(rf"\multicolumn{{{len(table.header)}}}{{l}}{{\emph{{{latex(table.headings[number])}}}}} \\")
        cells = [latex(cell) for cell in row]
        lines.append(_row([rf"\textbf{{{cell}}}" if cell else "" for cell in cells] if number in table.strong else cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def as_csv(table: Table) -> str:
    """Comma-separated values with a header. Headings become a first column ``group``. A spreadsheet reads no cell as a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    grouped = bool(table.headings)
    writer.writerow([*["group"] * grouped, *map(cell, table.header)])
    group = ""
    for number, row in enumerate(table.rows):
        group = table.headings.get(number, group)
        writer.writerow([*[cell(group)] * grouped, *map(_csv_cell, row)])
    return out.getvalue()


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _csv_cell(text: str) -> str:
    """A signed number stays a number; other text that begins like a formula is marked."""
    plain = text.replace("−", "-")
    return plain if re.fullmatch(r"[+-]?\d[\d.]*", plain) else cell(text)
