"""The catalog: one broken plug-in never stops another, and every refusal names what is true."""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import PluginError, RecipeError
from kdq_core.plugins.bases import KINDS
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.checks import check_recipe, load_recipe
from kdq_core.reading.recipe_file import read_recipe_lines
from kdq_core.recipe.spec import Recipe, Use
from kdq_core.store.records import EvaluationReport

Install = Callable[..., None]
Load = Callable[[], Catalog]
NUMBERS = itertools.count()

HEAD = """\
    from kdq_core.api import Distiller, Field, PluginSpec, hookimpl
    """
BROUGHT = (
    HEAD
    + """
    @hookimpl
    def kdq_distillers():
        yield PluginSpec(name="soft", target=f"{__name__}:Soft", summary="a test")

    class Soft(Distiller):
        heat: float = Field(default=1.0, gt=0, le=9)
        mode: str = "a"
        def loss(self, student, teacher, batch):
            raise NotImplementedError
    """
)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a one-module distribution in the test's own folder."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str, version: str = "1.0") -> None:
        module = f"guest_{os.getpid()}_{next(NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[kdq]\nmain = {module}\n")

    return install


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load the catalog of what the test installed."""

    def load() -> Catalog:
        found = importlib.metadata.distributions(path=[str(tmp_path)])
        return Catalog.load(entry for distribution in found for entry in distribution.entry_points)

    return load


def reasons(catalog: Catalog) -> dict[str, str]:
    return {one.distribution: one.reason for one in catalog.quarantined}


def house() -> Catalog:
    return Catalog.load(importlib.metadata.distribution("kdq").entry_points.select(group="kdq"))


def test_the_house_plugins_are_all_there_and_none_is_quarantined() -> None:
    catalog = house()
    assert catalog.quarantined == ()
    assert {entry.kind for entry in catalog.entries} == set(KINDS)
    assert all(entry.house and entry.distribution == "kdq" and entry.summary for entry in catalog.entries)


def test_a_guest_is_found_with_its_distribution(install: Install, load: Load) -> None:
    install("guest-a", BROUGHT, "2.5")
    entry = load().find("distiller", "soft")
    assert (entry.distribution, entry.version, entry.house, entry.summary) == ("guest-a", "2.5", False, "a test")
    assert load().find("distiller", "guest-a/soft") == entry


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_nobody_has", "ModuleNotFoundError: No module named 'a_module_nobody_has'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 +", "SyntaxError: "),
        ("KDQ_PLUGIN_API = '>=2'", "written for plug-in API '>=2'; this is 1; install a matching version"),
        ("KDQ_PLUGIN_API = 'new'", "KDQ_PLUGIN_API is 'new', not a version range such as '>=1,<2'"),
        ("", "names no hook; mark a function with '@hookimpl', which kdq_core.api has"),
        (HEAD + "@hookimpl\n    def kdq_distiller(): pass", "no hook 'kdq_distiller'; did you mean 'kdq_distillers'?"),
        (HEAD + "@hookimpl\n    def kdq_distillers(): raise OSError('no')", "OSError: no"),
        (HEAD + "@hookimpl\n    def kdq_distillers(): yield 'soft'",
         "hook 'kdq_distillers' gives 'soft', not a PluginSpec"),
        (HEAD + "@hookimpl\n    def kdq_distillers(): yield PluginSpec(name='Soft', target='a:B')",
         "distiller 'Soft' is not named in kebab-case, such as 'minmax-qat'"),
        (HEAD + "@hookimpl\n    def kdq_distillers(): yield PluginSpec(name='soft', target='a.B')",
         "distiller 'soft' has target 'a.B', not 'package.module:Class'"),
        (HEAD + "@hookimpl\n    def kdq_distillers(): return [PluginSpec(name='soft', target='a:B')] * 2",
         "names distiller 'soft' twice"),
    ],
    ids=["import", "exit", "syntax", "api", "api text", "no hook", "misspelt", "raises", "no spec", "name", "target",
         "twice"],
)  # fmt: skip
def test_a_broken_plugin_is_quarantined_with_its_reason_and_the_others_work(
    source: str, reason: str, install: Install, load: Load
) -> None:
    install("guest-bad", source)
    install("guest-good", BROUGHT)
    catalog = load()
    assert catalog.find("distiller", "soft").distribution == "guest-good"
    assert list(reasons(catalog)) == ["guest-bad"]
    assert reasons(catalog)["guest-bad"].startswith(reason)


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "MemoryError"])
def test_an_interrupt_is_not_a_quarantine_reason(error: str, install: Install, load: Load) -> None:
    install("guest-bad", f"raise {error}")
    with pytest.raises((KeyboardInterrupt, MemoryError)):
        load()


def test_a_name_nobody_brings_is_refused_with_the_nearest_and_all_that_are_there(install: Install, load: Load) -> None:
    install("guest-a", BROUGHT)
    with pytest.raises(PluginError) as caught:
        load().find("distiller", "sofd")
    assert str(caught.value) == "no distiller named 'sofd'; did you mean 'soft'? Installed: soft."
    with pytest.raises(PluginError) as caught:
        load().find("quantizer", "soft")
    assert str(caught.value) == "no quantizer named 'soft'. Installed: none."


def test_a_missing_name_mentions_what_is_quarantined(install: Install, load: Load) -> None:
    install("guest-bad", "raise OSError('no licence')")
    with pytest.raises(PluginError) as caught:
        load().find("distiller", "soft")
    assert str(caught.value) == (
        "no distiller named 'soft'. Installed: none. Quarantined: guest-bad (OSError: no licence)."
    )


def test_a_name_from_two_guests_is_an_error_naming_both(install: Install, load: Load) -> None:
    install("guest-a", BROUGHT)
    install("guest-b", BROUGHT)
    catalog = load()
    with pytest.raises(PluginError) as caught:
        catalog.find("distiller", "soft")
    assert str(caught.value) == (
        "distiller 'soft' comes from 2 distributions; write one of 'guest-a/soft' and 'guest-b/soft'."
    )
    assert catalog.find("distiller", "guest-b/soft").distribution == "guest-b"
    assert sorted(catalog.names("distiller")) == ["guest-a/soft", "guest-b/soft"]


def test_a_house_name_cannot_be_shadowed(install: Install, load: Load) -> None:
    install("guest-a", BROUGHT)
    install("kdq", BROUGHT)
    catalog = load()
    assert catalog.find("distiller", "soft").house
    assert not catalog.find("distiller", "guest-a/soft").house
    assert sorted(catalog.names("distiller")) == ["guest-a/soft", "soft"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heet": 1}, "at x:3: unknown option 'heet' of distiller 'soft'; did you mean 'heat'? allowed: heat, mode"),
        ({"heat": 0}, "at x:3: option 'heat' of distiller 'soft' is 0; allowed: a number, above 0 and at most 9"),
        ({"heat": "1"}, "at x:3: option 'heat' of distiller 'soft' is '1'; allowed: a number, above 0 and at most 9"),
        ({"mode": None}, "at x:3: option 'mode' of distiller 'soft' is None; allowed: text"),
    ],
)
def test_a_wrong_option_names_plugin_option_value_and_what_is_allowed(
    options: dict[str, object], message: str, install: Install, load: Load
) -> None:
    install("guest-a", BROUGHT)
    with pytest.raises(RecipeError) as caught:
        load().build("distiller", "soft", options, where="at x:3")
    assert str(caught.value) == message


def test_several_wrong_options_come_as_a_list(install: Install, load: Load) -> None:
    install("guest-a", BROUGHT)
    with pytest.raises(RecipeError) as caught:
        load().build("distiller", "soft", {"heat": 10, "mode": 3})
    assert str(caught.value).splitlines() == [
        "distiller 'soft' has 2 problems:",
        "option 'heat' of distiller 'soft' is 10; allowed: a number, above 0 and at most 9",
        "option 'mode' of distiller 'soft' is 3; allowed: text",
    ]


def test_a_built_plugin_holds_its_options(install: Install, load: Load) -> None:
    install("guest-a", BROUGHT)
    assert load().build("distiller", "soft", {"heat": 2}).model_dump() == {"heat": 2.0, "mode": "a"}


def test_what_a_plugin_prints_while_it_loads_goes_to_stderr(install: Install, load: Load, capsys: Any) -> None:
    install("guest-a", HEAD + "print('imported')\n    @hookimpl\n    def kdq_distillers():\n        print('asked')\n"
            "        return [PluginSpec(name='soft', target='loud_target:Soft')]")  # fmt: skip
    (Path(sys.path[0]) / "loud_target.py").write_text("print('built')\n" + textwrap.dedent(BROUGHT))
    load().build("distiller", "soft", {})
    print("KDQ's")
    assert capsys.readouterr() == ("KDQ's\n", "imported\nasked\nbuilt\n")


SPEC = (
    HEAD
    + """
    @hookimpl
    def kdq_distillers():
        yield PluginSpec(name="soft", target={target})
    """
)


@pytest.mark.parametrize(
    ("target", "rest", "message"),
    [
        ("'a_module_nobody_has:X'", "", "distiller 'soft' of guest-a 1.0 cannot be loaded: ModuleNotFoundError: "
         "No module named 'a_module_nobody_has'; reinstall or upgrade 'guest-a'"),
        ("'json:JSONDecoder'", "",
         "distiller 'soft' of guest-a 1.0 is broken: 'json:JSONDecoder' is no subclass of Distiller"),
        ("'json:dumps'", "", "distiller 'soft' of guest-a 1.0 is broken: 'json:dumps' is no subclass of Distiller"),
        ("'kdq_core.plugins.kinds:Distiller'", "",
         "distiller 'soft' of guest-a 1.0 is incomplete: 'kdq_core.plugins.kinds:Distiller' lacks loss"),
    ],
    ids=["import", "other class", "function", "abstract"],
)  # fmt: skip
def test_a_target_that_is_no_plugin_is_refused_in_one_paragraph(
    target: str, rest: str, message: str, install: Install, load: Load
) -> None:
    install("guest-a", SPEC.format(target=target) + rest)
    catalog = load()
    with pytest.raises(PluginError) as caught:
        catalog.build("distiller", "soft", {})
    assert str(caught.value) == message


@pytest.mark.filterwarnings("ignore:Field name")  # pydantic's own word on it
def test_a_class_that_makes_an_option_of_what_it_should_declare_is_refused(install: Install, load: Load) -> None:
    install("guest-a", BROUGHT.replace('mode: str = "a"', 'reads: str = "labels"'))
    with pytest.raises(PluginError) as caught:
        load().build("distiller", "soft", {})
    assert str(caught.value).endswith(
        ":Soft' makes 'reads' an option; write `reads = ...` or `reads: ClassVar[...] = ...`"
    )


WATCHING = (
    HEAD
    + """
    @hookimpl
    def kdq_stage_started(recipe, stage):
        return f"{recipe}/{stage}"

    @hookimpl
    def kdq_before_promotion(name):
        yield f"not {name}"
    """
)


def test_every_plugin_hears_a_lifecycle_hook_even_if_one_raises(
    install: Install, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    install("guest-a", HEAD + "@hookimpl\n    def kdq_stage_started(): raise OSError('disk')")
    install("guest-b", WATCHING)
    with caplog.at_level(logging.WARNING, "kdq"):
        answers = load().lifecycle("kdq_stage_started", recipe="digits", stage="export", key="0" * 64)
    assert answers == ["digits/export"]
    assert caplog.messages == ["plug-in 'guest-a' failed in kdq_stage_started: OSError: disk"]


def test_a_plugin_that_fails_before_a_promotion_vetoes_it(install: Install, load: Load) -> None:
    install(
        "guest-a",
        HEAD + "@hookimpl\n    def kdq_before_promotion():\n        yield 'no'\n        raise OSError('disk')",
    )
    install("guest-b", WATCHING)
    answers = load().lifecycle("kdq_before_promotion", name="m", version=1, report=EvaluationReport(models={}))
    assert sorted(answers) == [["not m"], ["plug-in 'guest-a' failed in kdq_before_promotion: OSError: disk"]]


def test_a_recipe_is_checked_with_the_line_of_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("name: x\nworkload: digits\ndistill:\n  options:\n    temperature: -1\n")
    recipe, lines = read_recipe_lines(Path("r.yaml"))
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe, house(), lines=lines)
    assert str(caught.value) == (
        "r.yaml:5: option 'temperature' of distiller 'logit-kd' is -1; allowed: a number, 0.01 to 100"
    )


def test_a_plugin_that_is_missing_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("name: x\nworkload: digits\ndistill:\n  use: logit_kd\n")
    recipe, lines = read_recipe_lines(Path("r.yaml"))
    with pytest.raises(PluginError) as caught:
        check_recipe(recipe, house(), lines=lines)
    assert str(caught.value) == (
        "r.yaml:4: no distiller named 'logit_kd'; did you mean 'logit-kd'? "
        "Installed: attention-transfer, crd, dist, dkd, fitnet, hard-label, logistic, logit-kd, mixed-kd, mse-logits, "
        "multi-label-kd, regression-kd, rkd, similarity, token-kd."
    )


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("use: static\n  fit: {epochs: 2}",
         "quantizer 'static' does not train, so 'quantize.fit' means nothing to it; leave it out, or use one that "
         "trains"),
        ("use: weight-only\n  weight_loss: 0.5",
         "quantizer 'weight-only' does not train, so 'quantize.weight_loss' means nothing to it; leave it out, or use "
         "one that trains"),
        ("use: static\n  control: true",
         "quantizer 'static' does not train, so 'quantize.control' means nothing to it; leave it out, or use one that "
         "trains"),
        ("use: static\n  taught_by: student",
         "quantizer 'static' does not train, so 'quantize.taught_by' means nothing to it; leave it out, or use one "
         "that trains"),
        ("use: weight-only\n  activations: 4",
         "quantizer 'weight-only' leaves activations in float, so 'quantize.activations' means nothing; leave it out"),
        ("use: dynamic\n  activations: 4",
         "quantizer 'dynamic' has activations of 8 bits, always; leave 'quantize.activations' out"),
    ],
)  # fmt: skip
def test_what_a_quantizer_has_no_use_for_is_refused(
    section: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"name: x\nworkload: digits\nquantize:\n  {section}\n")
    recipe, lines = read_recipe_lines(Path("r.yaml"))
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe, house(), lines=lines)
    assert str(caught.value) == f"r.yaml:5: {sentence}"
    Path("r.yaml").write_text("name: x\nworkload: digits\nquantize: {use: lsq, fit: {epochs: 2}, activations: 4}\n")
    check_recipe(read_recipe_lines(Path("r.yaml"))[0], house())


def test_a_recipe_without_a_file_is_checked_too() -> None:
    recipe = Recipe(name="x", workload=Use(use="digits", options={"no": 1}))
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe, house())
    assert str(caught.value).startswith("unknown option 'no' of workload 'digits'; ")


def test_checking_a_recipe_and_hashing_its_code_imports_no_torch() -> None:
    code = """
        import sys
        from kdq_core.plugins.catalog import Catalog
        from kdq_core.reading.checks import check_recipe
        from kdq_core.recipe.spec import Recipe, Use
        catalog = Catalog.load()
        check_recipe(Recipe(name="x", workload=Use(use="digits")), catalog)
        versions = [catalog.code_of(entry) for entry in catalog.entries]
        heavy = {"torch", "onnx", "onnxruntime", "openvino", "sklearn", "pandas", "mlflow", "prefect"}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_gate_on_a_metric_that_nobody_measures_is_an_error_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: x\nworkload: digits\nevaluate: [size]\ngates:\n  - {metric: byte, at_most: 9}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert str(caught.value) == (
        f"{file}:5: no evaluator of the recipe gives the metric 'byte' of a gate; did you mean 'bytes'? Given: bytes, "
        "compression, parameters, weight_bytes_float, weight_bytes_int8."
    )


def test_a_gate_may_ask_for_the_metric_of_one_of_several_outputs(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: x\nworkload: digits\nevaluate: [quality]\ngates:\n  - {metric: top1/bright, at_least: 0.9}\n"
    )
    assert load_recipe(file).gates[0].metric == "top1/bright"
    file.write_text(file.read_text().replace("top1/", "topp1/"))
    with pytest.raises(RecipeError, match=":5: no evaluator of the recipe gives the metric 'topp1/bright' of a gate"):
        load_recipe(file)
