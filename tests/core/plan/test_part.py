"""The stages that `--only`, `--from`, `--until` and `--refresh` leave, and what they refuse."""

import pytest

from kdq_core.errors import RecipeError
from kdq_core.plan.part import Part, check_reads
from kdq_core.plan.plan import Plan, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site

TAIL = {"export", "evaluate", "register"}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    target = {"use": "onnxruntime-cpu", "options": {"placement": "smallest"}}
    recipe = {"name": "x", "workload": "digits", "quantize": {"use": "minmax-qat"}, "target": target}
    return make_plan(Recipe.model_validate(recipe), Site(home=tmp_path_factory.mktemp("home")), Catalog.load())


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (Part(only=("distill", "export@b")), {"distill"}),
        (Part(start=("export",)), TAIL),
        (Part(until=("distill",)), {"train_teacher", "cache_teacher", "distill"}),
        (Part(start=("distill",), until=("quantize",)), {"distill", "quantize"}),
    ],
)
def test_the_options_together_leave_the_stages_that_all_of_them_allow(part: Part, names: set[str], plan: Plan) -> None:
    assert part.wanted(plan, "a") == names


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Part(only=("distil",)), "the plan has no stage 'distil'; did you mean 'distill'? It has: cache_teacher, "),
        (Part(refresh=("export@c",)), "there is no branch 'c'. The recipe has: a, b"),
        (
            Part(only=("distill",), start=("export", "evaluate")),
            "no stage is in all that --only distill --from export --from evaluate ask for, so nothing would run; leave "
            "one of them out",
        ),
    ],
)
def test_unknown_names_and_options_that_leave_nothing_are_refused(part: Part, said: str, plan: Plan) -> None:
    with pytest.raises(RecipeError) as caught:
        part.check({"a": plan, "b": plan})
    assert str(caught.value).startswith(said)


def test_a_part_whose_stages_read_what_is_not_there_is_refused(plan: Plan) -> None:
    left_out = {node.name for node in plan.nodes} - TAIL
    with pytest.raises(RecipeError, match=r"^stage 'export' reads what 'train_teacher' gives, which is not in the st"):
        check_reads(plan, left_out, left_out, kept=())
    check_reads(plan, left_out, left_out, kept=left_out)
