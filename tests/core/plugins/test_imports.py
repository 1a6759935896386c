"""What a source file imports is read from its text, quickly where that is safe; no import is missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdq_core.plugins import imports
from kdq_core.plugins.imports import Import, imports_of

ROOT = Path(__file__).resolve().parents[3]
PRODUCT = [
    path for room in ("kdq_core", "plugins", "flows", "registry") for path in sorted((ROOT / room).rglob("*.py"))
]
ENCODINGS = sorted(Path(pytest.__file__).parent.glob("*.py"))

A, B, C = Import("a"), Import("b"), Import("c")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a", {A}),
        ("import a.b as x, c", {Import("a.b"), C}),
        ("from a.b import c, d as e", {Import("a.b", ("c", "d"))}),
        ("from . import a", {Import("", ("a",), 1)}),
        ("from ..a import b", {Import("a", ("b",), 2)}),
        ("from.import a", {Import("", ("a",), 1)}),
        ("from a import *", {Import("a", ("*",))}),
        ("from a import (  # of (all)\n    b,  # :)\n    c\n)", {Import("a", ("b", "c"))}),
        ("from a \\\n    import b, \\\n    c", {Import("a", ("b", "c"))}),
        ("import a; import b;import c", {A, B, C}),
        ("def f():\n\timport a\n", {A}),
        ("if x: import a\nelse: import b\n", {A, B}),
        ("try:\n    import a\nexcept E:\n    import b\nfinally:\n    import c\n", {A, B, C}),
        ("match x:\n    case 1:\n        import a\n", {A}),
        ("class C:\n    async def f(self):\n        with x:\n            import a\n", {A}),
        ("import a\r\nimport b\rimport c", {A, B, C}),
        ("x = 1\rimport a", {A}),
        ("\fimport a", {A}),
        ("# -*- coding: latin-1 -*-\nx = '\xe9'\nimport a", {A}),
        ("from d\u00e9j\u00e0 import vu", {Import("d\u00e9j\u00e0", ("vu",))}),
        ("'''\nfrom here on it is prose\nimport nothing, or so\n'''\nimport a", {A}),
        ("x = '\\d'\nimport importlib\nimportlib.import_module('a')", {Import("importlib"), A}),
        ("import_module('a.b')", {Import("a.b")}),
        ("__import__('a')", {A}),
        ("import_module('..a', __package__)", {Import("a", (), 2)}),
        ("import_module(name)", set()),
        ("1 +", set()),
        ("import a\n1 +", {A}),
        ("\0", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_every_form_of_an_import_is_found(source: str, found: set[Import]) -> None:
    coding = "latin-1" if "latin-1" in source else "utf-8"
    assert set(imports_of(source.encode(coding))) == found


@pytest.mark.parametrize(
    "source",
    [
        "if TYPE_CHECKING:\n    import b\nimport a",
        "if typing.TYPE_CHECKING:  # for mypy\n\n    import b\n\n    from b import (\n        c\n    )\n\nimport a",
        "if x:\n    if TYPE_CHECKING:\n        import b\n    import a",
        "import a\nif TYPE_CHECKING:\n    import b\n    import c",
        "if TYPE_CHECKING:\n    import b\nelse:\n    import a",
        "if TYPE_CHECKING: import b\nimport a",
        "if not TYPE_CHECKING:\n    import a",
        "def f():\n    '''\nif TYPE_CHECKING:\n    '''\n    import a",
    ],
)
def test_what_only_a_type_checker_imports_is_left_out(source: str) -> None:
    assert imports_of(source.encode()) == (A,)


@pytest.mark.parametrize("path", PRODUCT + ENCODINGS, ids=lambda path: path.name)
def test_the_quick_way_misses_no_import_of_a_real_file(path: Path) -> None:
    """Examples in docstrings are all that it may find beyond."""
    source = path.read_bytes()
    whole, quick = set(imports._in_tree(source)), set(imports_of(source))
    assert whole <= quick
    text = source.decode()
    assert all(text.count(one.module) and ('"""' in text) for one in quick - whole)


def test_nearly_all_files_are_read_the_quick_way() -> None:
    slow = [path for path in PRODUCT if imports._cut_out(path.read_bytes()) is None]
    assert len(slow) < len(PRODUCT) / 20
