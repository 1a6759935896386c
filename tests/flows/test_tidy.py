"""What processes that died left in a home."""

from kdq_core.recipe.spec import Site
from kdq_core.store import open_store
from kdq_flows.run.tidy import tidy
from tests.core.store.test_store import written


def test_the_scratch_of_a_finished_stage_goes_and_that_of_an_unfinished_one_stays(site: Site) -> None:
    store, (done, open_, damaged) = open_store(site), ("1" * 64, "2" * 64, "3" * 64)
    for key in (done, damaged):
        written(store, key)
    (store.folder(damaged) / "manifest.json").write_text("{")
    for name in (done, open_, damaged, "ranks-x"):
        (site.home / "scratch" / name / "tmp").mkdir(parents=True)
    tidy(site)
    assert sorted(one.name for one in (site.home / "scratch").iterdir()) == [open_, damaged, "ranks-x"]
