"""The page `gallery.md`: the recipes in `recipes/`, and tables of `benchmarks/`. No number is its own."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Gallery

`docs/make_pages.py` writes this page from `recipes/*.yaml` and `benchmarks/*.md`. Do not edit it. Each table names its
machine. The scripts beside those pages measure again on yours."""
MEASURED = (
    ("## The demo recipe, measured", "pipeline.md", None),
    ("## Quality\n\n### Fashion-MNIST", "quality-fashion-mnist.md", None),
    ("### CLINC150", "quality-clinc150.md", None),
    ("## Speed and size\n\n### Latency", "quantization.md", "Latency, one thread"),
    ("### File size", "quantization.md", "File size, ONNX"),
    ("## Training beside a teacher", "distillation.md", "Training step"),
)
"""Heading, page of `benchmarks/`, and section of that page; without a section the whole page."""


def page() -> str:
    """The page."""
    parts = [HEAD, "## Recipes", *map(_recipe, sorted((ROOT / "recipes").glob("*.yaml")))]
    parts += [f"{title}\n\n{_body(file, section)}" for title, file, section in MEASURED]
    return "\n\n".join(parts) + "\n"


def _recipe(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return f"### `recipes/{path.name}`\n\n```yaml\n{text}```\n\n```sh\nkdq run recipes/{path.name}\n```"


def _body(file: str, section: str | None) -> str:
    """A page of `benchmarks/` without its title, or one of its sections."""
    text = (ROOT / "benchmarks" / file).read_text(encoding="utf-8")
    if section is None:
        return text.partition("\n")[2].strip()
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise LookupError(f"benchmarks/{file} has no section {section!r}")
    return f"From `benchmarks/{file}`.\n\n{found[1].strip()}"
