"""`kdq plugins new` and `kdq plugins check`: write a plug-in, and find which promise it breaks."""

from __future__ import annotations

import keyword
import re
import time
from pathlib import Path
from typing import Annotated

import typer

from kdq_flows.cli.own import SetOption, options_of
from kdq_flows.cli.plugins import KindOption, plugins


def register_commands(app: typer.Typer) -> None:  # noqa: ARG001 - both stand below `kdq plugins`
    """Add `plugins new` and `plugins check`."""
    plugins.command("new")(new)
    plugins.command("check")(check)


def new(
    kind: Annotated[str, typer.Argument(help="workload, distiller, quantizer, target, evaluator or stage.")],
    name: Annotated[str, typer.Argument(help="Its name in recipes, such as soft-round.")],
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Default: kdq-NAME.")] = None,
) -> None:
    """Write an installable package with a plug-in that works, a test of its promises, and a README."""
    from kdq_core.errors import RecipeError, did_you_mean, listing
    from kdq_core.plugins.bases import KINDS
    from kdq_flows.templates import written

    if kind not in KINDS:
        raise RecipeError(
            f"no kind of plug-in named {kind!r}{did_you_mean(kind, KINDS) or '.'} Kinds: {listing(KINDS)}."
        )
    check_name(kind, name)
    folder = folder or Path(f"kdq-{name}")
    if folder.exists():
        raise RecipeError(f"{str(folder)!r} is there already; name another folder")
    for path in written(folder, package(kind, name)):
        typer.echo(f"wrote  {path}")
    typer.echo(f"\npip install --no-deps --editable {folder}")
    typer.echo(f"kdq plugins check {name}")
    typer.echo(f"then put your method into {folder / 'src' / module(f'kdq-{name}') / module(name)}.py")


def check_name(kind: str, name: str) -> None:
    """Refuse a name that a recipe or Python could not write, or that is taken.

    Raises:
        RecipeError: the name is no words of small letters, or an installed plug-in of this kind has it.
    """
    from kdq_core.errors import RecipeError
    from kdq_core.plugins.catalog import Catalog

    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or keyword.iskeyword(module(name)):
        raise RecipeError(
            f"a plug-in cannot be called {name!r}; write small letters and digits, and '-' between words, such as "
            "soft-round"
        )
    taken = [one for one in Catalog.load().entries if (one.kind, one.name) == (kind, name)]
    if taken:
        raise RecipeError(f"{taken[0].distribution} has a {kind} named {name!r}; choose another name")


def package(kind: str, name: str) -> dict[str, str]:
    """The text of each file of a new package, by path."""
    from kdq_flows.templates import templates

    own, words = module(name), re.split("[-_]", name)
    root = f"src/kdq_{own}"
    places = {
        "pyproject.toml": "pyproject.toml", "README.md": "README.md", "plugin.py": f"{root}/plugin.py",
        "my_plugin.py": f"{root}/{own}.py", "test_promises.py": "tests/test_promises.py",
    }  # fmt: skip
    meant = {"my-plugin": name, "my_plugin": own, "MyPlugin": "".join(word.capitalize() for word in words)}
    files = {f"{root}/__init__.py": ""}
    for path in (*templates("plugins", "common"), *templates("plugins", kind)):
        text = path.read_text(encoding="utf-8")
        for old, given in meant.items():
            text = text.replace(old, given)
        if path.parent.name == "common":
            text = text.replace("kdq_quantizers", f"kdq_{kind}s").replace("The quantizer", f"The {kind}")
        files[places[path.name]] = text
    return dict(sorted(files.items()))


def module(name: str) -> str:
    """A name as a Python module has it."""
    return name.replace("-", "_")


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The plug-in's name, or path/to/file.py:Class.")],
    kind: KindOption = None,
    settings: SetOption = None,
    target: Annotated[
        str, typer.Option("--target", help="The runtime for quantizers and evaluators.")
    ] = "onnxruntime-cpu",
    timed: Annotated[
        list[str] | None, typer.Option("--timed", metavar="METRIC", help="A metric that measures time.")
    ] = None,
) -> None:
    """Try every promise of a plug-in's kind; prints those that it keeps, and the first one that it breaks."""
    from kdq_core.errors import KdqError
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.worker.main import named
    from kdq_flows.cli.plugins import _find, _kinds
    from kdq_flows.kits import kind_of, try_plugin

    catalog = Catalog.load()
    kinds = (kind_of(name),) if ".py:" in name and kind is None else _kinds(kind)
    entry = catalog.find(kinds[0], name) if ".py:" in name else _find(catalog, name, kinds)
    plugin = catalog.build(entry.kind, name, options_of(settings))
    kept, began = 0, time.monotonic()

    def tell(promise: str) -> None:
        nonlocal kept
        kept += 1
        typer.echo(f"kept    {promise}")

    try:
        try_plugin(plugin, tell, target=target, timed=timed or (), catalog=catalog)
    except AssertionError as error:
        typer.echo(f"broken  {error}")
        raise typer.Exit(1) from None
    except Exception as error:
        typer.echo(f"broken  {error if isinstance(error, KdqError) else named(error)}")
        raise typer.Exit(1) from None
    typer.echo(f"{entry.kind} {name!r} keeps its promises: {kept} checks in {time.monotonic() - began:.0f} s")
