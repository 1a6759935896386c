"""Distillers in a recipe: the short form, the long one, their mistakes and their keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdq_core.errors import KdqError
from kdq_core.plan.plan import make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.checks import check_recipe
from kdq_core.reading.recipe_file import document_from_text, recipe_from_document, recipe_from_text
from kdq_core.recipe.site import Site

CATALOG = Catalog.load()
HEAD = "name: x\nworkload: digits\n"
LONG = (
    HEAD
    + """distill:
  losses:
    - logit-kd
    - use: fitnet
      weight: {schedule: cosine, start: 1.0, end: 0.0}
      taps: [[blocks.*, "blocks.[12]"]]
    - use: logit-kd
      name: warm
      options: {temperature: {schedule: linear, start: 8, end: 2}, alpha: 1.0}
      weight: 0.5
"""
)


def keys(text: str) -> tuple[str, str]:
    """Keys of the stages that are taught, as if their parents were done."""
    recipe = recipe_from_text(text)
    plan = make_plan(recipe, Site(home=Path("home")), CATALOG)
    nodes = [plan.node(name) for name in ("distill", "quantize")]
    distill, quantize = (node.key(dict.fromkeys(node.parents.values(), "0" * 64)) for node in nodes)
    return distill, quantize


def refusal(text: str) -> str:
    document = document_from_text(text, "r.yaml")
    with pytest.raises(KdqError) as caught:
        check_recipe(recipe_from_document(document), CATALOG, document)
    return str(caught.value)


def test_the_long_form_lists_distillers_with_weights_schedules_and_taps():
    recipe = recipe_from_text(LONG)
    check_recipe(recipe, CATALOG)
    plain, hint, warm = recipe.distill.distillers
    assert [use.title for use in (plain, hint, warm)] == ["logit-kd", "fitnet", "warm"]
    assert [use.weight.at(0.25, 0.0) for use in (plain, warm)] == [1.0, 0.5]
    assert hint.weight.at(0.5, 0.0) == pytest.approx(0.5)
    assert hint.taps == (("blocks.*", "blocks.[12]"),)
    assert plain.taps == "auto"
    assert [warm.options_at(end)["temperature"] for end in (0, -1)] == [8.0, 2.0]


def test_the_short_form_is_one_distiller_of_weight_one():
    recipe = recipe_from_text(HEAD + "distill: {use: dkd, options: {beta: 2}}")
    (use,) = recipe.distill.distillers
    assert (use.use, use.options, use.weight.ends, use.title) == ("dkd", {"beta": 2}, (1.0,), "dkd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("losses: []", "r.yaml:3: key 'distill': 'losses' is empty; name at least one distiller, or leave it out"),
        ("use: dkd\n  losses: [dkd]",
         "r.yaml:3: key 'distill': 'use' and 'losses' are two forms of one thing; move 'use' into 'losses'"),
        ("losses: [dkd, dkd]",
         "r.yaml:3: key 'distill': distiller 'dkd' is listed twice in 'losses'; give each a 'name' of its own"),
        ("losses:\n  - dkd\n  - {use: fitnet, options: {beta: -1}}",
         "r.yaml:6: option 'beta' of distiller 'fitnet' is -1; allowed: a number, 0 to 100000"),
        ("losses:\n  - dkd\n  - {use: fitnet, options: {betta: 1}}",
         "r.yaml:6: unknown option 'betta' of distiller 'fitnet'; did you mean 'beta'? allowed: beta, hard_weight"),
        ("losses: [{use: dkd, weight: {schedule: constant, start: 1, end: 0}}]",
         "r.yaml:4: key 'distill.losses[0].weight': schedule 'constant' has no 'end'; leave it out, or write it as "
         "{schedule: linear, start: 1.0, end: 0.0}"),
        ("options: {temperature: {schedule: constant, start: 4, end: 1}}",
         "r.yaml:4: key 'distill.options.temperature': schedule 'constant' has no 'end'; leave it out, or write it as "
         "{schedule: linear, start: 1.0, end: 0.0}"),
        ("losses:\n  - dkd\n  - {use: fitnet, taps: [[a, b], [c, d], [a, b]]}",
         "r.yaml:6: key 'distill.losses[1].taps': ['a', 'b'] is written twice; leave one out"),
        ("transfer: {layers: [[a, b], [a, b]]}",
         "r.yaml:4: key 'distill.transfer.layers': ['a', 'b'] is written twice; leave one out"),
        ("losses:\n  - dkd\n  - {use: fitness}", "r.yaml:6: no distiller named 'fitness'; did you mean 'fitnet'? "),
        ("losses:\n  - {use: dkd, wait: 1}",
         "r.yaml:5: unknown key 'wait' in 'distill.losses[0]'; did you mean 'weight'? "
         "allowed: name, options, taps, task, use, weight"),
        ("losses:\n  - {use: dkd, weight: heavy}",
         "r.yaml:5: key 'distill.losses[0].weight': 'heavy' is neither a number nor a schedule; write one as "
         "{schedule: linear, start: 1.0, end: 0.0}"),
        ("losses:\n  - {use: dkd, weight: -1}",
         "r.yaml:5: key 'distill.losses[0].weight': a weight is -1.0; allowed: a number, 0 to 1000, also at both "
         "ends of a schedule"),
        ("losses:\n  - {use: dkd, weight: {schedule: gap, start: 1}}",
         "r.yaml:5: key 'distill.losses[0].weight': schedule 'gap' needs an 'end'; write it as "
         "{schedule: linear, start: 1.0, end: 0.0}"),
        ("losses:\n  - {use: dkd, weight: {schedule: cosin, start: 1, end: 0}}",
         "r.yaml:5: key 'distill.losses[0].weight.schedule' is 'cosin'; did you mean 'cosine'? allowed: 'constant' "
         "or 'cosine' or 'gap' or 'linear'"),
        ("losses:\n  - {use: fitnet, taps: [a, b]}",
         "r.yaml:5: key 'distill.losses[0].taps': ['a', 'b'] are no pairs; write 'auto', or [[path in student, "
         "path in teacher]]"),
        ("losses:\n  - dkd\n  - use: dist\n    taps: auto",
         "r.yaml:7: distiller 'dist' compares no features, so 'taps' mean nothing to it; leave them out, or use a "
         "distiller of features, such as 'fitnet'"),
        ("options: {temperature: {schedule: linear, start: 2, end: 200}}",
         "r.yaml:4: option 'temperature' of distiller 'logit-kd' is 200.0; allowed: a number, 0.01 to 100"),
        ("options: {temperature: {schedule: linear, start: 2}}",
         "r.yaml:4: key 'distill.options.temperature': schedule 'linear' needs an 'end'; write it as "
         "{schedule: linear, start: 1.0, end: 0.0}"),
        ("options:\n    temperature:\n      schedule: cosin\n      start: 8\n      end: 2",
         "r.yaml:6: key 'distill.options.temperature.schedule' is 'cosin'; did you mean 'cosine'? allowed: 'constant' "
         "or 'cosine' or 'gap' or 'linear'"),
        ("losses:\n  - {use: dkd, options: {beta: {schedule: linear, start: 8, end: 2, steps: 5}}}",
         "r.yaml:5: unknown key 'steps' in 'distill.losses[0].options.beta'; allowed: end, schedule, start"),
        ("options: {temperature: {schedule: linear, from: 8, to: 2}}",
         "recipe 'r.yaml' has 3 problems:\n"
         "r.yaml:4: key 'distill.options.temperature.start' is missing; it must be a number\n"
         "r.yaml:4: unknown key 'from' in 'distill.options.temperature'; allowed: end, schedule, start\n"
         "r.yaml:4: unknown key 'to' in 'distill.options.temperature'; allowed: end, schedule, start"),
        ("options: {temperature: {schedule: linear, start: 8}, alpha: {schedule: linear, start: 1}}",
         "recipe 'r.yaml' has 2 problems:\nr.yaml:4: key 'distill.options.alpha': schedule 'linear' needs an 'end'; "),
        ("options: {standardize: {schedule: linear, start: 0, end: 1}}",
         "r.yaml:4: option 'standardize' of distiller 'logit-kd' is 0.0; allowed: true or false"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_and_line(change, message):
    assert refusal(f"{HEAD}distill:\n  {change}\n").startswith(message)


def test_both_forms_of_one_distiller_have_one_key():
    short = keys(HEAD + "distill: {use: dkd, options: {beta: 2}}")
    assert keys(HEAD + "distill: {losses: [{use: dkd, options: {beta: 2.0, alpha: 1.0}}]}") == short
    assert keys(HEAD + "distill: {use: dkd, options: {beta: 3}}") != short


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weight: 0.5", "weight: 0.6"),
        ("schedule: cosine", "schedule: gap"),
        ("end: 0.0", "end: 0.1"),
        ("end: 2}", "end: 3}"),
        ("schedule: linear", "schedule: cosine"),
        ("[12]", "[01]"),
        ("taps: [[blocks.*, \"blocks.[12]\"]]", "taps: auto"),
        ("alpha: 1.0", "alpha: 0.9"),
        ("name: warm", "name: hot"),
        ("- logit-kd\n", "- mse-logits\n"),
    ],
)  # fmt: skip
def test_all_that_matters_of_every_distiller_is_in_the_keys_of_the_stages_it_teaches(old, new):
    assert old in LONG
    there, here = keys(LONG), keys(LONG.replace(old, new))
    assert there[0] != here[0]
    assert there[1] != here[1]


def test_the_order_of_distillers_and_the_code_of_each_are_in_the_keys():
    one, other = (keys(HEAD + f"distill: {{losses: [{names}]}}") for names in ("dkd, dist", "dist, dkd"))
    assert one[0] != other[0]
    plan = make_plan(recipe_from_text(LONG), Site(home=Path("home")), CATALOG)
    assert {"distiller fitnet", "distiller logit-kd"} <= set(plan.node("distill").parts["code"])


def test_the_name_of_one_distiller_is_in_the_key_where_the_record_has_it():
    plain, named = (keys(HEAD + f"distill: {{losses: [{{use: fitnet{name}}}]}}") for name in ("", ", name: hints"))
    assert plain[0] != named[0]
    assert keys(HEAD + "distill: {losses: [{use: dkd, name: mine}]}") == keys(HEAD + "distill: {use: dkd}")


WHOLE = ["mse-logits", "multi-label-kd", "regression-kd", "logistic", "dist", "mixed-kd"]


@pytest.mark.parametrize("use", WHOLE)
def test_top_k_is_refused_for_a_distiller_that_reads_all_logits(use):
    distill = f"distill:\n  losses:\n    - fitnet\n    - {{use: {use}}}\n"
    assert refusal(HEAD + distill + "teacher:\n  cache: {top_k: 3}\n") == (
        "r.yaml:8: 'teacher.cache.top_k' keeps the 3 largest probabilities and the sum of the others, but distiller "
        f"'{use}' reads all logits; leave top_k out, or use a distiller of softmax distributions, such as 'logit-kd'"
    )
    keys(HEAD + distill + "teacher:\n  cache: {top_k: 3, enabled: false}\n")


@pytest.mark.parametrize("where", ["weight", "options"])
def test_top_k_is_refused_where_a_schedule_follows_the_gap(where):
    gap = "{schedule: gap, start: 2, end: 1}"
    section = f"weight: {gap}" if where == "weight" else f"options: {{temperature: {gap}}}"
    distill = f"distill:\n  losses:\n    - {{use: logit-kd, {section}}}\n"
    assert refusal(HEAD + distill + "teacher:\n  cache: {top_k: 3}\n") == (
        "r.yaml:7: 'teacher.cache.top_k' keeps the 3 largest probabilities and the sum of the others, but a schedule "
        "of distiller 'logit-kd' follows the gap between student and teacher, which is measured on all logits; leave "
        "top_k out, or use another schedule"
    )
    keys(HEAD + distill)


def test_top_k_names_the_option_without_which_a_distiller_takes_it():
    distill = "distill:\n  options: {alpha: 0.5, standardize: true, temperature: {schedule: gap, start: 2, end: 1}}\n"
    assert refusal(HEAD + distill + "teacher:\n  cache: {top_k: 3}\n") == (
        "r.yaml:6: 'teacher.cache.top_k' keeps the 3 largest probabilities and the sum of the others, but distiller "
        "'logit-kd' reads all logits with 'standardize' as set here; leave top_k out, or leave 'standardize' out: with "
        "its default options it does not"
    )


@pytest.mark.parametrize("use", ["logit-kd", "dkd", "hard-label", "token-kd"])
def test_distillers_of_softmax_distributions_take_top_k(use):
    text = HEAD + f"distill: {{use: {use}}}\nteacher: {{cache: {{top_k: 3}}}}\n"
    check_recipe(recipe_from_text(text), CATALOG)
