"""The page `gallery.md`: the recipes, their results, and tables of `benchmarks/`. No number is its own."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Gallery

The recipes that come with KDQ, what they give, and how fast the files are. Each table names its machine; the scripts
that it names measure again on yours. `docs/make_pages.py` writes this page from `recipes/*.yaml`, `examples/RESULTS.md`
and `benchmarks/*.md`. Do not edit it."""
RESULTS = (
    ("## The recipes, measured", "examples/RESULTS.md", None),
    ("## The demo recipe, measured", "benchmarks/pipeline.md", None),
)
RECIPES = """\
## Recipes

`digits.yaml` and `digits-matrix.yaml` run with KDQ alone, the other recipes with the package of `examples/` beside
it."""
BENCHMARKS = (
    ("## Quality\n\n### Fashion-MNIST", "benchmarks/quality-fashion-mnist.md", None),
    ("### CLINC150", "benchmarks/quality-clinc150.md", None),
    ("## Speed and size\n\n### Latency", "benchmarks/quantization.md", "Latency, one thread"),
    ("### File size", "benchmarks/quantization.md", "File size, ONNX"),
    ("## Training beside a teacher", "benchmarks/distillation.md", "Training step"),
)
"""As `RESULTS`: heading, page of measured results, and section of that page; without a section the whole page."""


def page() -> str:
    """The page."""
    recipes = map(_recipe, sorted((ROOT / "recipes").glob("*.yaml")))
    parts = [HEAD, *map(_measured, RESULTS), RECIPES, *recipes, *map(_measured, BENCHMARKS)]
    return "\n\n".join(parts) + "\n"


def _measured(one: tuple[str, str, str | None]) -> str:
    title, file, section = one
    return f"{title}\n\n{_body(file, section)}"


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
