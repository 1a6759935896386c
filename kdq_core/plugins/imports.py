"""Reads the imports of a source file from its text, without importing anything.

To parse a whole file takes about 20 times as long as to parse its import statements alone, and a key needs the imports
of some hundred files. So KDQ cuts the statements out and parses these; if it could miss one, it parses the whole file.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Import:
    """One statement that imports.

    Attributes:
        module: the module as written, without leading dots.
        names: names imported from that module; empty for `import module`.
        level: number of leading dots of a relative import.
    """

    module: str
    names: tuple[str, ...] = ()
    level: int = 0

    @property
    def top(self) -> str:
        """The top-level package or module; empty for a relative import."""
        return "" if self.level else self.module.partition(".")[0]


_STATEMENT = re.compile(
    rb"(?:^|[;:])[ \t\f]*("
    rb"(?:from(?:[ \t\f.\w\x80-\xff]|\\\n)+?\bimport\b|import\b)"
    rb"(?:[^\n;#\\(]|\\\n|\([^)]*\))*)",
    re.MULTILINE,
)
"""Finds every import statement, which begins a line or follows `;` or `:`; may also find text inside strings."""
_FOR_TYPES = re.compile(rb"^if (?:typing\.)?TYPE_CHECKING:[ \t]*(?:#.*)?\n(?:(?:[ \t]+.*)?\n)+", re.MULTILINE)
_ASKS_FOR_MORE = re.compile(rb"import_module|__import__|TYPE_CHECKING[ \t]*:")


def imports_of(source: bytes) -> tuple[Import, ...]:
    """All imports of a source file, also those inside functions, except under `if TYPE_CHECKING:`.

    `importlib.import_module("name")` and `__import__("name")` count if the name is a literal. An example in a
    docstring may count as well. A file that Python cannot parse has no imports here; Python reports it on import.
    """
    source = source.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + b"\n"
    found = _cut_out(source)
    return tuple(dict.fromkeys(_in_tree(source) if found is None else found))


def parsed(source: bytes) -> ast.Module | None:
    """The syntax tree of a source file; `None` if Python cannot parse it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about strings such as "\d", in code that is not KDQ's
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _cut_out(source: bytes) -> list[Import] | None:
    """The imports from their statements alone; `None` if that needs the whole tree."""
    for_types = _FOR_TYPES.findall(source)
    rest = _FOR_TYPES.sub(b"", source) if for_types else source
    if _ASKS_FOR_MORE.search(rest) or any(quotes in block for block in for_types for quotes in (b'"""', b"'''")):
        return None
    tree = parsed(b"\n".join(_STATEMENT.findall(rest)))
    if tree is None or not all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body):
        return None  # it also found text of a string or a comment
    return list(_statements(tree.body))


def _in_tree(source: bytes) -> list[Import]:
    tree = parsed(source)
    if tree is None:
        return []
    calls = _calls(tree) if re.search(rb"import_module|__import__", source) else ()
    return [*_statements(tree.body), *calls]


def _statements(body: list[ast.stmt]) -> Iterator[Import]:
    """Yield the imports in a body and its nested bodies, but not those for type checkers alone."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.module or "", tuple(alias.name for alias in node.names), node.level)
        else:
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                inner = getattr(node, field, None)
                if isinstance(inner, list) and not (field == "body" and _for_types_alone(node)):
                    yield from _statements(inner)


def _for_types_alone(node: ast.AST) -> bool:
    """Whether it is `if TYPE_CHECKING:` or `if typing.TYPE_CHECKING:`."""
    test = getattr(node, "test", None) if isinstance(node, ast.If) else None
    return "TYPE_CHECKING" in (getattr(test, "id", None), getattr(test, "attr", None))


def _calls(tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
            continue
        called, name = getattr(node.func, "attr", getattr(node.func, "id", None)), node.args[0].value
        if called in ("import_module", "__import__") and isinstance(name, str):
            yield Import(name.lstrip("."), level=len(name) - len(name.lstrip(".")))
