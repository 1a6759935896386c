"""A teacher from the registry: `kdq plan` finds it, the stages read it, and its file's content is in the keys."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdq_core.errors import RecipeError
from kdq_core.plan.plan import Plan, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.checks import load_recipe
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import Artifact, ModelVersion, TensorSpec
from kdq_core.store.store import Entry, Store
from kdq_core.tensors import View
from kdq_core.work.run import StageRequest, run_stage
from kdq_flows.run.teachers import resolved
from kdq_registry.environment import client

Registered = Callable[..., ModelVersion]


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[[int], Path]:
    """In place of the room's own: a linear teacher for the images of the workload `digits`."""

    def write(seed: int = 0) -> Path:
        from onnx import TensorProto, helper, numpy_helper, save

        graph = helper.make_graph(
            [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
            [numpy_helper.from_array(weights(seed), "w")],
        )
        path = tmp_path / f"digits-{seed}.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        return path

    return write


@pytest.fixture
def artifact(artifact: Artifact) -> Artifact:
    """What describes that teacher's file."""
    return artifact.model_copy(
        update={
            "inputs": (TensorSpec(name="x", dtype="float32", shape=(-1, 1, 8, 8)),),
            "outputs": (TensorSpec(name="y", dtype="float32", shape=(-1, 10)),),
        }
    )


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "taught.yaml"
    path.write_text(
        "name: taught\nworkload: digits\nteacher:\n  members: [{source: registered, model: digits@champion}]\n"
        "  cache: {views: 1, form: fp32}\n"
    )
    return path


@pytest.fixture
def kdq(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command on the site in this process; gives what it says as JSON, and on stderr."""
    from typer.testing import CliRunner

    from kdq_flows.cli import app

    monkeypatch.setenv("KDQ_HOME", str(site.home))
    monkeypatch.setenv("KDQ_THREADS", str(site.threads))

    def run(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
        return json.loads(done.stdout), done.stderr

    return run


def planned(recipe: Recipe, site: Site) -> Plan:
    return make_plan(resolved(recipe, site), site, Catalog.load())


def ran(plan: Plan, *names: str) -> dict[str, Entry]:
    """Run stages in this process and commit their entries."""
    entries = dict[str, Entry]()
    for name in names:
        node, digests = plan.node(name), {title: entry.digest for title, entry in entries.items()}
        request = StageRequest(
            title=name,
            key=node.key(digests),
            parts=node.full_parts(digests),
            parents={port: entries[title].manifest.key for port, title in node.parents.items()},
            recipe=plan.recipe,
            site=plan.site,
        )
        entries[name] = Store(plan.site.store).lookup(request.key) or run_stage(request, lambda _event: None)
    return entries


def test_stages_read_the_registered_model_and_a_moved_alias_is_a_miss_that_the_plan_explains(
    site: Site, registered: Registered, recipe_file: Path, kdq: Callable[..., Any]
) -> None:
    registered(0), registered(1)
    client(site).set_registered_model_alias("digits", "champion", "1")
    plan = planned(load_recipe(recipe_file), site)
    kept = ran(plan, "train_teacher", "cache_teacher")["cache_teacher"]
    batch = next(iter(Catalog.load().build("workload", "digits").batches("train", batch_size=64, view=View(0, 0))))
    rows = np.fromfile(kept.file("logits.bin"), "<f4").reshape(1197, 10)
    x = batch.inputs[0].numpy().reshape(64, 64)
    np.testing.assert_allclose(rows[batch.ids.numpy()], x @ weights(0), rtol=1e-4, atol=1e-5)
    rows, said = kdq("plan", str(recipe_file))
    states = {row["stage"]: (row["state"], row["why"]) for row in rows}
    assert states["train_teacher"] == states["cache_teacher"] == ("cached", "")
    assert said.startswith("teacher digits@champion is version 1 of 'digits', sha256 ")
    client(site).set_registered_model_alias("digits", "champion", "2")
    rows, said = kdq("plan", str(recipe_file))
    states = {row["stage"]: (row["state"], row["why"]) for row in rows}
    assert said.startswith("teacher digits@champion is version 2 of 'digits', sha256 ")
    assert states["train_teacher"] == ("run", "recipe.teacher.members changed")


def test_the_key_holds_what_the_file_holds_however_it_was_named(
    site: Site, registered: Registered, recipe_file: Path, onnx_file: Callable[[int], Path]
) -> None:
    registered(0)
    client(site).set_registered_model_alias("digits", "champion", "1")
    asked = load_recipe(recipe_file).model_dump(mode="json", by_alias=True)
    members: tuple[dict[str, Any], ...] = (
        {"source": "registered", "model": "digits@champion"},
        {"source": "registered", "model": "digits/1"},
        {"source": "onnx", "file": str(onnx_file(0))},
    )
    recipes = [Recipe.model_validate(asked | {"teacher": {"members": [member]}}) for member in members]
    keys = {planned(recipe, site).node("train_teacher").key({}) for recipe in recipes}
    assert len(keys) == 1
    plan = planned(recipes[0], site)
    assert plan.recipe.teacher.members[0].source == "onnx"
    assert str(site.home) not in json.dumps(plan.node("train_teacher").parts)
    with pytest.raises(RecipeError) as caught:
        make_plan(recipes[0], site, Catalog.load())
    assert str(caught.value) == (
        "the teacher 'digits@champion' is in a registry, which a plan does not read; `kdq plan` and `kdq run` fetch "
        "its file first (kdq_flows.run.teachers.resolved), or give that file as source: onnx"
    )


def test_validate_asks_no_registry(site: Site, recipe_file: Path, kdq: Callable[..., Any]) -> None:
    (told,), _ = kdq("validate", str(recipe_file))
    assert told["valid"] is True
    assert not (site.home / "registered").exists()
    with pytest.raises(RecipeError, match=r"^no registered model named 'digits'\. Registered: none; `kdq run"):
        kdq("plan", str(recipe_file))
