"""Draw the closing table of a real run.

```
kdq run recipes/digits.yaml --json | tail -n 1 > result.json
python docs/make_table.py result.json docs/result-table.svg
```
"""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.table import Table

from kdq_flows.facts.result import RunResult

WIDTH = 102


def draw(result: RunResult) -> str:
    """The table as an SVG that loads nothing from elsewhere."""
    rows = result.table
    table = Table(title=f"{result.run}: {result.status} in {result.seconds:.1f} s", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console(record=True, width=WIDTH, file=StringIO())
    console.print(table)
    if result.version:
        console.print(f"version   {result.version.name} {result.version.version}", highlight=False)
    without_fonts = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    drawn = console.export_svg(title="kdq run recipes/digits.yaml", code_format=without_fonts, unique_id="kdq")
    return "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"


def main(result_file: str, picture: str) -> None:
    """Read the JSON line of a run, write the picture."""
    result = RunResult.model_validate_json(Path(result_file).read_text(encoding="utf-8"))
    Path(picture).write_text(draw(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
