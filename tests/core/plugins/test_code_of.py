"""The code of a guest: its whole package, and all that this stands on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdq_core.errors import PluginError
from kdq_core.plugins import sources
from kdq_core.plugins.code_version import Code, code_of

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write files below three folders of PYTHONPATH: `mine`, `theirs` and `site-packages`."""
    names = {"guest", "helper", "other", "mod", "big", "bigger", "space"}
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)  # another test's
    for name in ("mine", "theirs", "env/site-packages"):
        (tmp_path / name).mkdir(parents=True)
        monkeypatch.syspath_prepend(str(tmp_path / name))

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    yield write
    assert not names & set(sys.modules)


def code() -> Code:
    return code_of("guest.sub.plug:Plug", "guest-dist")


GUEST = {
    "mine/guest/__init__.py": "raise RuntimeError('imported')",
    "mine/guest/sub/plug.py": "import numpy\nfrom kdq_core.api import Workload",
}


def test_any_file_of_the_package_changes_the_code(write: Write, tmp_path: Path) -> None:
    write(**GUEST)
    seen = [code()]
    for name in ("sub/plug.py", "unrelated.py", "data/table.csv", "native.so", "types.pyi", ".hidden"):
        write(**{f"mine/guest/{name}": f"a = {name!r}"})
        seen.append(code())
        write(**{f"mine/guest/{name}": f"b = {name!r}"})
        seen.append(code())
    (tmp_path / "mine/guest/data/table.csv").rename(tmp_path / "mine/guest/data/other.csv")
    seen.append(code())
    (tmp_path / "mine/guest/data/other.csv").unlink()
    seen.append(code())
    assert len({one.text for one in seen}) == len(seen)


def test_what_python_and_tools_leave_behind_does_not(write: Write) -> None:
    write(**GUEST)
    before = code()
    for name in ("__pycache__/plug.cpython-311.pyc", "old.pyc", "old.pyo", ".git/index", "sub/.ruff_cache/x"):
        write(**{f"mine/guest/{name}": "x"})
    write(**{"mine/beside.py": "x", "mine/notes.txt": "x"})
    assert code() == before


def test_the_version_and_the_place_of_the_package(write: Write, tmp_path: Path) -> None:
    """What is installed is hashed too; another place is another key for nobody."""
    write(**GUEST)
    unknown = code().text
    assert unknown.startswith("sha256:")
    info = "env/site-packages/guest_dist-1.2.dist-info"
    write(
        **{f"{info}/METADATA": "Metadata-Version: 2.1\nName: guest-dist\nVersion: 1.2\n", f"{info}/RECORD": "guest/\n"}
    )
    assert code().text == f"guest-dist==1.2 {unknown}"
    (tmp_path / "mine/guest").rename(tmp_path / "env/site-packages/guest")
    assert code().text == f"guest-dist==1.2 {unknown}"
    write(**{"env/site-packages/guest/sub/plug.py": "x = 1"})
    assert code().text != f"guest-dist==1.2 {unknown}"


def test_a_helper_outside_of_site_packages_counts_whole_and_so_does_what_it_imports(write: Write) -> None:
    write(**GUEST, **{"mine/guest/more.py": "def f():\n    from helper.inner import x"})
    write(**{"theirs/helper/__init__.py": "", "theirs/helper/inner.py": "", "theirs/helper/table.json": "[]",
             "theirs/helper/far.py": "import mod", "mine/mod.py": "import other.deep", "theirs/other/deep.py": "",
             "theirs/other/data": ""})  # fmt: skip
    seen = [code()]
    for name in ("theirs/helper/inner.py", "theirs/helper/table.json", "mine/mod.py", "theirs/other/deep.py",
                 "theirs/other/data"):  # fmt: skip
        write(**{name: "import other\nx = 2"})
        seen.append(code())
    assert len({one.text for one in seen}) == len(seen)
    write(**{"theirs/mod_that_nobody_imports.py": ""})
    assert code() == seen[-1]


def test_a_helper_that_is_named_in_a_call_is_followed(write: Write) -> None:
    write(
        **GUEST, **{"mine/guest/more.py": "import importlib\nimportlib.import_module('helper')", "theirs/helper.py": ""}
    )
    before = code()
    write(**{"theirs/helper.py": "x = 1"})
    assert code() != before


def test_what_is_imported_for_types_alone_is_not(write: Write) -> None:
    write(**GUEST, **{"mine/guest/more.py": "if TYPE_CHECKING:\n    import helper, yaml", "theirs/helper.py": ""})
    before = code()
    write(**{"theirs/helper.py": "x = 1"})
    assert code() == before
    assert set(code().libraries) == {"numpy"}


def test_the_standard_library_is_left_out(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(**GUEST, **{"mine/guest/more.py": "import json, sys, __main__, __future__"})
    looked, files = list[str](), sources.files
    monkeypatch.setattr(sources, "files", lambda place: [looked.append(place), *files(place)][1:])
    code()
    assert [Path(place).name for place in looked] == ["guest"]


def big(version: str, name: str = "Big-Dist") -> dict[str, str]:
    info = f"env/site-packages/big_dist-{version}.dist-info"
    return {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/RECORD": "big/__init__.py,,\nbig/inner.py,,\nbigger.py,,\n",
        "env/site-packages/big/__init__.py": "import helper",
        "env/site-packages/bigger.py": "",
    }


def test_of_an_installed_library_the_version_counts_and_nothing_else(write: Write, tmp_path: Path) -> None:
    write(**GUEST, **{"mine/guest/more.py": "import big.inner, bigger, json, no_such_module", "theirs/helper.py": ""})
    write(**big("1.0.1"))
    foot = "env/site-packages/bigfoot-1.dist-info"
    write(**{f"{foot}/METADATA": "Name: bigfoot\nVersion: 1\n", f"{foot}/RECORD": "bigfoot.py,,\n"})
    os.utime(tmp_path / "env/site-packages", (1, 1))  # what is so old is remembered
    before = code()
    assert before.libraries.keys() == {"Big-Dist", "numpy"}
    assert before.libraries["Big-Dist"] == "1.0.1"
    write(**{"env/site-packages/big/inner.py": "x = 1", "theirs/helper.py": "x = 1"})
    assert code() == before
    (tmp_path / "env/site-packages/big_dist-1.0.1.dist-info").rename(tmp_path / "gone")
    write(**big("1.0.2"))
    assert code().libraries["Big-Dist"] == "1.0.2"
    assert code().text == before.text


def test_what_lies_in_site_packages_without_a_distribution_counts_by_content(write: Write, tmp_path: Path) -> None:
    """So does what is only linked from there, as an editable installation may be."""
    write(
        **GUEST, **{"mine/guest/more.py": "import mod, helper", "env/site-packages/mod.py": "", "src/helper/a.py": ""}
    )
    (tmp_path / "env/site-packages/helper").symlink_to(tmp_path / "src/helper")
    write(**{"env/site-packages/h-1.dist-info/METADATA": "Name: h\nVersion: 1\n",
             "env/site-packages/h-1.dist-info/RECORD": "helper/a.py\n"})  # fmt: skip
    seen = [code()]
    for name in ("env/site-packages/mod.py", "src/helper/a.py"):
        write(**{name: "x = 1"})
        seen.append(code())
    assert len({one.text for one in seen}) == 3
    assert set(seen[0].libraries) == {"numpy"}


def test_a_namespace_that_several_distributions_share_names_all_of_them(write: Write) -> None:
    write(**GUEST, **{"mine/guest/more.py": "import space.a", "env/site-packages/space/a.py": "",
                      "theirs/space/b.py": ""})  # fmt: skip
    for name in ("space", "second"):
        info = f"env/site-packages/{name}-3.dist-info"
        write(**{f"{info}/METADATA": f"Name: {name}\nVersion: 3\n", f"{info}/RECORD": f"space/{name}.py\n"})
    before = code()
    assert before.libraries.items() >= {"space": "3", "second": "3"}.items()
    write(**{"theirs/space/b.py": "x = 1"})
    assert code().text != before.text


def test_of_kdq_a_guest_holds_what_it_takes_from_the_api(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kdq = {"kdq_core/api.py": "from kdq_core.a import A\n_LAZY = {'B': 'kdq_core.b'}", "kdq_core/__init__.py": "",
           "kdq_core/a.py": "", "kdq_core/b.py": "", "kdq_core/c.py": ""}  # fmt: skip
    write(**GUEST, **{f"copy/{name}": text for name, text in kdq.items()})
    write(**{"mine/guest/sub/plug.py": "from kdq_core.api import B\nimport helper", "theirs/helper.py": ""})
    found = sources.places
    monkeypatch.setattr(sources, "places", lambda t: [str(tmp_path / "copy" / t)] if t == "kdq_core" else found(t))

    def changes(name: str) -> bool:
        before = code()
        write(**{f"copy/kdq_core/{name}.py": "x = 1"})
        return code() != before

    assert [changes(name) for name in ("a", "b", "c")] == [False, True, False]
    write(**{"theirs/helper.py": "from kdq_core.api import A", "copy/kdq_core/a.py": "y = 1"})
    assert changes("a")


def test_a_package_that_sets_its_search_path_to_paths_is_followed(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers does once it is imported."""
    write(**{"mine/guest/__init__.py": "", "mine/guest/sub/plug.py": "import big", "theirs/big/__init__.py": "a = 1"})
    seen = code()
    spec = importlib.util.find_spec("big")
    assert spec is not None
    spec.submodule_search_locations = [Path(place) for place in spec.submodule_search_locations or ()]  # type: ignore[misc]
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "big", module)
    assert code() == seen
    monkeypatch.delitem(sys.modules, "big")


def test_a_distribution_may_be_one_module(write: Write) -> None:
    write(**{"env/site-packages/mod.py": "import helper", "theirs/helper.py": ""})
    seen = [code_of("mod:Plug", "x")]
    for name in ("env/site-packages/mod.py", "theirs/helper.py"):
        write(**{name: "import helper\nx = 1"})
        seen.append(code_of("mod:Plug", "x"))
    assert len({one.text for one in seen}) == 3


def test_an_archive_on_the_path_counts_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"

    def of(text: str) -> Code:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("packed/__init__.py", text)
        return code_of("packed:X", "x")

    monkeypatch.syspath_prepend(str(archive))
    assert of("x = 1") != of("x = 2")


def test_odd_files_stop_nothing(write: Write, tmp_path: Path) -> None:
    write(**GUEST, **{"mine/guest/broken.py": "import helper\ndef (", "mine/guest/warns.py": r"x = '\d'; import helper",
                      "theirs/helper.py": ""})  # fmt: skip
    package = tmp_path / "mine/guest"
    (package / "up").symlink_to(package)
    (package / "gone").symlink_to(tmp_path / "nowhere")
    (package / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(package / "pipe")
    Path(os.fsdecode(bytes(package) + b"/\xff.bin")).write_bytes(b"x")
    write(**{"elsewhere/data": "1"})
    before = code()
    write(**{"elsewhere/data": "2"})
    assert code() != before
    before = code()
    write(**{"mine/guest/broken.py": "def ("})
    assert code() != before
    before = code()
    write(**{"theirs/helper.py": "x = 1"})
    assert code() != before


@pytest.mark.parametrize("name", ["no_such_package_here", "__main__", "sys"])
def test_a_package_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(PluginError) as caught:
        code_of(f"{name}.inner:X", "x")
    assert str(caught.value) == (
        f"package {name!r} is not installed, though a plug-in names it; reinstall its distribution"
    )


def test_hashing_a_guest_imports_neither_it_nor_anything_heavy(write: Write, tmp_path: Path) -> None:
    write(**GUEST, **{"mine/guest/more.py": "import sklearn, yaml, torch, onnx"})
    child = """
        import sys
        from kdq_core.plugins.code_version import code_of
        print(sorted(code_of("guest.sub.plug", "").libraries))
        print(sorted({"torch", "onnx", "sklearn", "numpy", "guest"} & set(sys.modules)))
    """
    path = os.pathsep.join([str(tmp_path / "mine"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(child)],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path}, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["['PyYAML', 'numpy', 'onnx', 'scikit-learn', 'torch']", "[]"]
