"""The pages `api.md`, `python.md` and `testing.md`, from signatures and docstrings.

The generator reads the source and imports nothing, so that it does not depend on versions of libraries.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from make_reference import table
from prose import escaped, markdown

GROUPS = {
    "plugins": "Plug-ins and stages",
    "plan": "Runs",
    "store": "Records",
    "tensors": "Batches, outputs, losses",
    "grids": "Fake-quantizers",
    "quantization": "The captured graph and its rounding",
    "training": "Training",
    "recipe": "Recipe",
    "frozen": "Values",
    "intervals": "Intervals",
    "timing": "Measuring time",
    "errors": "Errors",
}
API = """\
# kdq_core.api

`docs/make_pages.py` writes this page from signatures and docstrings. Do not edit it.

These are all names that a plug-in may import from KDQ. Names that need torch load it on first use. How to use them:
[Your own plug-in](plugins.md)."""
PYTHON = """\
# The package kdq

`docs/make_pages.py` writes this page from signatures and docstrings. Do not edit it.

`import kdq` gives KDQ to a Python program. Worked examples: [Quantize a model](quantize.md#4-the-same-from-python),
[Your own model](your-model.md#from-python)."""
TESTING = """\
# Conformance kits

`docs/make_pages.py` writes this page from signatures and docstrings. Do not edit it.

Each kit of `kdq_core.testing` takes a plug-in. If the plug-in breaks a promise of its kind, the kit raises
`AssertionError` and names the promise. How to use them: [Your own plug-in](plugins.md)."""
Definition = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign


def api_page() -> str:
    """The page of `kdq_core.api`, grouped by the room that a name comes from."""
    groups: dict[str, list[str]] = {title: [] for title in GROUPS.values()}
    outside = []
    for name in _listed("kdq_core.api"):
        module, found = _definition("kdq_core.api", name)
        if found is None:
            outside.append(f"`{name}` is that of {module}.")
        else:
            groups[GROUPS[module.split(".")[1]]].append("\n\n".join(_entry(name, module, found)))
    parts = [text for title, texts in groups.items() if texts for text in (f"## {title}", *texts)]
    return "\n\n".join([API, *outside, *parts]) + "\n"


def python_page() -> str:
    """The page of the package `kdq`."""
    return _page(PYTHON, "kdq", [*_listed("kdq"), "Result"])


def testing_page() -> str:
    """The page of `kdq_core.testing`."""
    return _page(TESTING, "kdq_core.testing", _listed("kdq_core.testing"))


def _page(head: str, module: str, names: list[str]) -> str:
    """Functions first, then classes and values."""
    named = [(name, *_found(module, name)) for name in names]
    named.sort(key=lambda one: not isinstance(one[2], ast.FunctionDef))
    return "\n\n".join([head, *("\n\n".join(_entry(*one, level=2)) for one in named)]) + "\n"


@cache
def _tree(module: str) -> ast.Module:
    origin = getattr(importlib.util.find_spec(module), "origin", None)
    assert origin is not None, module
    return ast.parse(Path(origin).read_text(encoding="utf-8"))


def _listed(module: str) -> list[str]:
    """The names in `__all__`."""
    found = _found(module, "__all__")[1]
    assert isinstance(found, ast.Assign)
    return list(ast.literal_eval(found.value))


def _found(module: str, name: str) -> tuple[str, Definition]:
    where, found = _definition(module, name)
    assert found is not None, name
    return where, found


def _definition(module: str, name: str) -> tuple[str, Definition | None]:
    """Where a name is defined, through imports from other modules of KDQ; `None` for a name of another library."""
    if not module.startswith("kdq"):
        return module, None
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign) and name in _names(node):
            return module, node
    for inner in ast.walk(_tree(module)):  # also below `if TYPE_CHECKING:`
        if isinstance(inner, ast.ImportFrom):
            for alias in inner.names:
                if (alias.asname or alias.name) == name:
                    return _definition(str(inner.module), alias.name)
    raise LookupError(f"{module} does not define {name!r}")


def _names(node: Definition) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _entry(name: str, module: str, found: Definition, *, level: int = 3) -> Iterator[str]:
    yield f"{'#' * level} `{name}`"
    if isinstance(found, ast.FunctionDef):
        yield from _function(found, name)
    elif isinstance(found, ast.ClassDef):
        yield from _class(found, level)
    else:
        yield f"```python\n{ast.unparse(found)}\n```"
        yield from _note(_tree(module).body, found)


def _function(found: ast.FunctionDef, name: str) -> Iterator[str]:
    yield f"```python\n{_signature(found, name)}\n```"
    yield markdown(ast.get_docstring(found) or "")


def _signature(found: ast.FunctionDef, name: str) -> str:
    """One line, or one line for each parameter if that is longer than 90 characters."""
    given, gives = list(_parameters(found.args)), f" -> {ast.unparse(found.returns)}" if found.returns else ""
    line = f"def {name}({', '.join(given)}){gives}: ..."
    if len(line) <= 90:
        return line
    return f"def {name}(\n" + "".join(f"    {one},\n" for one in given) + f"){gives}: ..."


def _parameters(given: ast.arguments) -> Iterator[str]:
    """Each parameter with its annotation and its default."""
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults))
    yield from map(_parameter, plain, [*defaults, *given.defaults])
    if given.vararg or given.kwonlyargs:
        yield f"*{ast.unparse(given.vararg)}" if given.vararg else "*"
    yield from map(_parameter, given.kwonlyargs, given.kw_defaults)
    if given.kwarg:
        yield f"**{ast.unparse(given.kwarg)}"


def _parameter(one: ast.arg, default: ast.expr | None) -> str:
    equals = " = " if one.annotation else "="
    return ast.unparse(one) + (f"{equals}{ast.unparse(default)}" if default else "")


def _class(found: ast.ClassDef, level: int) -> Iterator[str]:
    bases = ", ".join(ast.unparse(base) for base in found.bases)
    yield f"```python\nclass {found.name}{f'({bases})' if bases else ''}: ...\n```"
    yield markdown(ast.get_docstring(found) or "")
    rows = [_field(found.body, node) for node in found.body if isinstance(node, ast.AnnAssign) and _public(node.target)]
    if rows:
        yield table(("field", "type", "default", "meaning"), rows)
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{'#' * (level + 1)} `{found.name}.{node.name}`"
            decorators = {ast.unparse(one) for one in node.decorator_list}
            if "property" in decorators:
                yield f"A property: `{ast.unparse(node.returns)}`." if node.returns else "A property."
                yield markdown(ast.get_docstring(node) or "")
            else:
                yield from _function(node, node.name)


def _public(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and not target.id.startswith("_")


def _field(body: list[ast.stmt], node: ast.AnnAssign) -> tuple[str, str, str, str]:
    default, meaning = ("", "") if node.value is None else (f"`{ast.unparse(node.value)}`", "")
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in ("Field", "field"):
        given = {one.arg: one.value for one in node.value.keywords}
        meaning = str(ast.literal_eval(given["description"])) if "description" in given else ""
        default = f"`{ast.unparse(given['default'])}`" if "default" in given else ""
        default = f"`{ast.unparse(given['default_factory'])}()`" if "default_factory" in given else default
    notes = " ".join(_note(body, node))
    return f"`{ast.unparse(node.target)}`", f"`{ast.unparse(node.annotation)}`", default, escaped(meaning) + notes


def _note(body: list[ast.stmt], node: ast.stmt) -> Iterator[str]:
    """The string that stands below a name."""
    after = body[body.index(node) + 1 :]
    if after and isinstance(after[0], ast.Expr) and isinstance(after[0].value, ast.Constant):
        yield escaped(" ".join(str(after[0].value.value).split()))
