"""The page `gallery.md`: the recipes, their results, and tables of `benchmarks/`. No number is its own."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Gallery

`docs/make_pages.py` writes this page from `recipes/*.yaml`, `examples/RESULTS.md` and `benchmarks/*.md`. Do not edit
it. Each table names its machine. The scripts beside those pages measure again on yours.

`digits.yaml` and `digits-matrix.yaml` run with KDQ alone, the other recipes with the package of `examples/` beside
it."""
MEASURED = (
    ("## The recipes, measured", "examples/RESULTS.md", None),
    ("## The demo recipe, measured", "benchmarks/pipeline.md", None),
    ("## Quality\n\n### Fashion-MNIST", "benchmarks/quality-fashion-mnist.md", None),
    ("### CLINC150", "benchmarks/quality-clinc150.md", None),
    ("## Speed and size\n\n### Latency", "benchmarks/quantization.md", "Latency, one thread"),
    ("### File size", "benchmarks/quantization.md", "File size, ONNX"),
    ("## Training beside a teacher", "benchmarks/distillation.md", "Training step"),
)
"""Heading, page of measured results, and section of that page; without a section the whole page."""


def page() -> str:
    """The page."""
    parts = [HEAD, "## Recipes", *map(_recipe, sorted((ROOT / "recipes").glob("*.yaml")))]
    parts += [f"{title}\n\n{_body(file, section)}" for title, file, section in MEASURED]
    return "\n\n".join(parts) + "\n"


def _recipe(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return f"### `recipes/{path.name}`\n\n```yaml\n{text}```\n\n```sh\nkdq run recipes/{path.name}\n```"


def _body(file: str, section: str | None) -> str:
    """A page without its title, or one of its sections."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if section is None:
        return text.partition("\n")[2].strip()
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise LookupError(f"{file} has no section {section!r}")
    return f"From `{file}`.\n\n{found[1].strip()}"
