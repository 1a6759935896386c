"""What processes that died left in a home."""

from kdq_core.recipe.spec import Site
from kdq_core.store import drafts, open_store
from kdq_flows.run.tidy import tidy
from tests.core.store.test_store import written


def test_the_scratch_of_a_finished_stage_goes_and_that_of_an_unfinished_one_stays(site: Site) -> None:
    store, (done, open_, damaged) = open_store(site), ("1" * 64, "2" * 64, "3" * 64)
    for key in (done, damaged):
        written(store, key)
    (store.folder(damaged) / "manifest.json").write_text("{")
    for name in (done, open_, damaged):
        (site.home / "scratch" / name / "tmp").mkdir(parents=True)
    tidy(site)
    assert sorted(one.name for one in (site.home / "scratch").iterdir()) == [open_, damaged]


def test_the_folder_of_checks_goes_when_its_process_has_died_and_no_sooner(site: Site) -> None:
    scratch = site.home / "scratch"
    with drafts.place(scratch, "checks") as held, drafts.place(scratch, "ranks") as left:
        (held / "tmp").mkdir(parents=True)
        (left / "tmp").mkdir(parents=True)
        lock = left.with_name(left.name + drafts.LOCK)
        lock.unlink()
        lock.touch()  # a lock that nobody holds is what a killed process leaves
        tidy(site)
        assert (held.exists(), left.exists()) == (True, False)
