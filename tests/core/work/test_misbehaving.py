"""Stages that break their promises: each is named, and nothing of it is kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdq_core.api import Checkpoint, Field, Port, Reads, Record, Section, Stage
from kdq_core.errors import PluginError, StageError, UnforeseenError
from kdq_core.plugins.catalog import Catalog
from kdq_core.store.records import EvaluationReport
from kdq_core.worker.main import named

Body = Callable[[Any], Any]


class Toy(Stage):
    gives = "student"
    record = Checkpoint
    where: str = Field(default="", description="where it writes what it should not")

    def reads(self, asked: Any, wired: Any) -> Reads:
        sections = (Section(name="quantize", only=("weights",)), Section(name="workload"))
        return Reads(sections=sections, plugins=("workload",), seeded=False, data=False, device=False)

    def run(self, work: Any) -> Record:
        body: Body = type(self).body  # type: ignore[attr-defined]
        given = body(work)
        (work.draft / "w").write_bytes(b"1")
        return Checkpoint(slot="student", weights="w", parameters=1) if given is None else given


def made(body: Body) -> type[Toy]:
    return type("Made", (Toy,), {"body": staticmethod(body), "__module__": __name__})


@pytest.fixture
def run(stages_of: Any, tiny: Catalog, with_stages: Any, tmp_path: Path) -> Any:
    """Runs a body as the only stage; gives the run and the error."""

    def ran(body: Body, **options: Any) -> tuple[Any, BaseException]:
        catalog = with_stages(tiny, toy=made(body))
        one = stages_of(tmp_path / "home", catalog, workload="digits", stages=[{"use": "toy", "name": "t", **options}])
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the tests look at it
            one.stage("t")
        return one, caught.value

    return ran


def nothing_is_kept(one: Any) -> bool:
    store = one.site.store
    kept = [path for path in store.rglob("*") if path.is_file() and path.parent.name != "index"]
    return kept == [] and list(one.site.home.glob("locks/*")) == []


def reads_a_section(work: Any) -> None:
    work.section("distill")


def reads_a_field(work: Any) -> None:
    assert work.section("quantize").weights == 8
    assert work.section("quantize").activations


def reads_no_section(work: Any) -> None:
    work.section("distil")


def reads_a_plugin(work: Any) -> None:
    assert work.target


def reads_an_input(work: Any) -> None:
    work.input("teacher")


def reads_the_seed(work: Any) -> None:
    work.seeded("mine")


def reads_data(work: Any) -> None:
    work.batches(0, 8)


def reads_data_by_the_workload(work: Any) -> None:
    assert work.workload.student() is not None
    work.workload.batches("train", batch_size=8)


def counts_samples(work: Any) -> None:
    work.workload.samples("train")


def reads_the_site(work: Any) -> None:
    assert work.site.threads


def gives_another(_work: Any) -> Record:
    return EvaluationReport(models={})


NO_DATA = (
    "stage 't' reads the workload's data, but its reads() says data=False; drop that, so that the stage's key holds "
    "the data's fingerprint"
)
NAME_IT = "name it there, so that the stage's key holds it"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (reads_a_section, f"stage 't' reads the section 'distill', which its reads() does not name; {NAME_IT}"),
        (reads_a_field, f"stage 't' reads 'quantize.activations', which its reads() does not name; {NAME_IT}"),
        (
            reads_no_section,
            "a recipe has no section 'distil'; it has: distill, evaluate, gates, quantize, register, student, target, "
            "teacher, workload",
        ),
        (
            reads_a_plugin,
            "stage 't' uses the recipe's target, which its reads() does not name in 'plugins'; name it there, so that "
            "the stage's key holds its code",
        ),
        (reads_an_input, "stage 't' reads the input 'teacher', which its inputs() does not name; it names: none"),
        (
            reads_the_seed,
            "stage 't' draws random numbers, but its reads() says seeded=False; drop that, so that the stage's key "
            "holds the seed",
        ),
        (reads_data, NO_DATA),
        (reads_data_by_the_workload, NO_DATA),
        (counts_samples, NO_DATA),
        (
            reads_the_site,
            "stage 't' reads the site, but its reads() says device=False; drop that, so that the stage's key holds "
            "device and threads",
        ),
        (
            gives_another,
            "stage 't' gave a 'EvaluationReport', but says that it gives a 'Checkpoint'; return that, or correct "
            "'record' in its class",
        ),
    ],
)
def test_a_stage_that_reads_or_gives_what_it_did_not_declare_is_named(run: Any, body: Body, message: str) -> None:
    one, error = run(body)
    assert type(error) is PluginError
    assert str(error) == message
    assert nothing_is_kept(one)


def test_a_record_taken_for_one_of_another_class_is_named(
    stages_of: Any, tiny: Catalog, with_stages: Any, tmp_path: Path
) -> None:
    class Second(Toy):
        def inputs(self, asked: Any) -> dict[str, Port]:
            return {"student": Port(slot="student")}

        def run(self, work: Any) -> Record:
            found: Record = work.record("student", EvaluationReport)
            return found

    catalog = with_stages(tiny, toy=made(lambda _work: None), second=Second)
    one = stages_of(tmp_path / "home", catalog, workload="digits", stages=["toy", "second"])
    one.stage("toy")
    with pytest.raises(PluginError) as caught:
        one.stage("second")
    assert str(caught.value) == (
        "stage 'second' takes the record at its input 'student' for a 'EvaluationReport', and it is a 'Checkpoint'; "
        "name the class in inputs()"
    )


def test_a_stage_that_raises_is_named_with_its_package(run: Any) -> None:
    def fails(_work: Any) -> None:
        raise ZeroDivisionError("it is zero")

    one, error = run(fails)
    told = named(error)
    assert type(told) is UnforeseenError
    assert str(told) == (
        f"ZeroDivisionError: it is zero (in {__file__}:{fails.__code__.co_firstlineno + 1}); the stage 't' of "
        "kdq-toys 1.0 raised it"
    )
    assert nothing_is_kept(one)


def test_what_a_stage_says_itself_is_told_as_it_is(run: Any) -> None:
    def says(_work: Any) -> None:
        raise StageError("it does not fit")

    one, error = run(says)
    assert type(error) is StageError
    assert str(error) == "it does not fit"
    assert nothing_is_kept(one)


def test_a_house_stage_that_raises_is_named_without_a_package(
    stages_of: Any, tiny: Catalog, installed: Any, tmp_path: Path
) -> None:
    base: Any = type(tiny.build("workload", "digits", {}))

    class Broken(base):  # type: ignore[misc]
        def teacher(self) -> Any:
            raise RuntimeError("no teacher today")

    one = stages_of(tmp_path, installed(Broken), workload="digits")
    one.checked = True
    with pytest.raises(RuntimeError) as caught:
        one.stage("train_teacher")
    assert str(named(caught.value)).endswith("; the stage 'train_teacher' raised it")


def opens(work: Any) -> None:
    Path(work.wired.stage.where, "a.txt").write_text("1")


def saves_with_a_library(work: Any) -> None:
    np.save(Path(work.wired.stage.where, "a.txt"), np.zeros(3))
    Path(work.wired.stage.where, "a.txt.npy").rename(Path(work.wired.stage.where, "a.txt"))


def copies(work: Any) -> None:
    (work.draft / "x").write_text("1")
    shutil.copyfile(work.draft / "x", Path(work.wired.stage.where, "a.txt"))


def moves(work: Any) -> None:
    (work.draft / "x").write_text("1")
    (work.draft / "x").rename(Path(work.wired.stage.where, "a.txt"))


def makes_a_folder(work: Any) -> None:
    Path(work.wired.stage.where, "a.txt").mkdir()


def writes_down(work: Any) -> None:
    descriptor = os.open(Path(work.wired.stage.where, "a.txt"), os.O_CREAT | os.O_WRONLY)
    os.close(descriptor)


@pytest.mark.parametrize("body", [opens, saves_with_a_library, copies, moves, makes_a_folder, writes_down])
def test_a_stage_that_leaves_files_outside_its_draft_is_named_with_them(
    run: Any, tmp_path: Path, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    where = tmp_path / "elsewhere"
    where.mkdir()
    one, error = run(body, options={"where": str(where)})
    assert type(error) is StageError
    assert str(error) == (
        f"stage 't' left files outside its draft: '{where / 'a.txt'}'; its code must write to work.draft, and what it "
        "leaves there becomes the entry's; remove these, then run again"
    )
    assert nothing_is_kept(one)


def test_of_many_files_the_first_are_named_and_folders_by_what_is_in_them(run: Any, tmp_path: Path) -> None:
    def many(work: Any) -> None:
        folder = Path(work.wired.stage.where)
        folder.mkdir()
        for number in range(5):
            (folder / str(number)).write_text("1")
        (folder / "gone").write_text("1")
        (folder / "gone").unlink()

    where = tmp_path / "elsewhere"
    _, error = run(many, options={"where": str(where)})
    first = ", ".join(repr(str(where / str(number))) for number in range(3))
    assert str(error).startswith(f"stage 't' left files outside its draft: {first} and 2 more; its code must write to ")


def test_draft_scratch_temporary_files_and_what_others_write_are_no_ones_fault(
    stages_of: Any, tiny: Catalog, with_stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    (cache / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    monkeypatch.setenv("SOME_LIBRARY_HOME", str(cache))

    def good(work: Any) -> None:
        (work.draft / "more").mkdir()
        (work.draft / "more" / "x").write_text("1")
        (work.scratch / "x").write_text("1")
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(b"1")
        (tmp_path / "gone").write_text("1")
        (tmp_path / "gone").unlink()
        Path("/dev/null").write_text("1")
        np.save(cache / "deep" / "x.npy", np.zeros(3))  # a library, where it is told to keep things
        np.save(tmp_path / ".hidden" / "x.npy", np.zeros(3))

    one = stages_of(tmp_path / "home", with_stages(tiny, toy=made(good)), workload="digits", stages=["toy"])
    entry = one.stage("toy")
    assert sorted(ref.path for ref in entry.manifest.files) == ["more/x", "w"]


def test_a_workload_that_keeps_a_cache_is_no_fault_of_the_stage_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdq_core.work.watch import watching

    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "kdq_a_workload.py").write_text("def load(path):\n    path.write_text('kept')\n")
    (tmp_path / "a_stage.py").write_text("import kdq_a_workload\ndef run(path):\n    kdq_a_workload.load(path)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(installed)
    import a_stage  # type: ignore[import-not-found]

    file = tmp_path / "kept.bin"
    with watching("a_stage", {"kdq_a_workload"}, ()) as watch:
        a_stage.run(file)
    assert watch.left() == []
    with watching("kdq_a_workload", set(), ()) as watch:
        a_stage.run(file)
    assert watch.left() == [str(file)]
