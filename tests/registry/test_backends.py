"""The registry on PostgreSQL and over HTTP, from separate homes; the other tests use SQLite."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import requests

from kdq_core.errors import StageError
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import Artifact, EvaluationReport, ModelVersion
from kdq_registry.environment import client
from kdq_registry.fetching import fetch
from kdq_registry.history import history
from kdq_registry.listing import list_models
from kdq_registry.promotion import promote
from kdq_registry.registering import register
from kdq_registry.tracking import Tracker
from tests.architecture.pages import ROOT, blocks
from tests.registry.backends import kdq, mlflow_server, postgres
from tests.registry.tracked import run_id

Make = Callable[..., ModelVersion]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as address:
        yield address


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow),
                        pytest.param("server", marks=[pytest.mark.slow, pytest.mark.rare])])  # fmt: skip
def tracking(request: pytest.FixtureRequest, site: Site) -> Iterator[str]:
    """The address of each kind of backend."""
    if request.param == "postgresql":
        yield request.getfixturevalue("database")
    elif request.param == "server":
        with mlflow_server(site) as address:
            yield address
    else:
        yield site.mlflow_uri


@pytest.fixture
def made(
    recipe: Recipe, artifact: Artifact, report_of: Callable[..., EvaluationReport], onnx_file: Callable[[int], Path]
) -> Make:
    """Registers the model of a seed at a site."""

    def make(site: Site, seed: int = 0, **figures: float) -> ModelVersion:
        return register(
            site, recipe=recipe, artifact_file=onnx_file(seed), artifact=artifact, report=report_of(**figures),
            lineage={"data": "b" * 64}, run_id=None, example={"image": np.ones((2, 4), np.float32)},
        )  # fmt: skip

    return make


def test_homes_share_versions_champion_history_and_files(tracking: str, tmp_path: Path, made: Make) -> None:
    one, other = (Site(home=tmp_path / name, tracking_uri=tracking) for name in ("one", "other"))
    first = made(one)
    assert made(other).version == first.version
    second = made(other, seed=1)
    assert promote(one, "digits", first.version).promoted
    assert promote(other, "digits", second.version).before == first.version
    assert fetch(one, "digits@champion").sha256 == second.file_sha256
    assert [row["to"] for row in history(one, "digits")[0]] == [first.version, second.version]
    rows, notes = list_models(other)
    assert {row["version"]: row["aliases"] for row in rows} == {
        first.version: ["previous"], second.version: ["champion"]
    }  # fmt: skip
    assert notes == []
    assert client(one).get_model_version("digits", str(first.version)).description.startswith("# digits\n")
    tracker = Tracker.begin(other, Recipe(name="curves", workload="digits"), owner="me", plan_tags={}, data="f" * 64)
    run = client(one).get_run(run_id(other, tracker))
    assert run.inputs.dataset_inputs[0].dataset.digest == "f" * 36
    assert not Path("mlruns").exists()


BARE = (
    "kdq_core", "kdq_flows", "kdq_registry", "torch", "onnx", "safetensors", "sqlalchemy", "alembic", "flask",
    "pandas", "scipy", "sklearn", "pyarrow", "docker", "graphene",
)  # fmt: skip
"""What `pip install onnxruntime mlflow-skinny` does not install."""


@pytest.mark.slow
@pytest.mark.rare
def test_the_page_fetches_checks_and_runs_the_champion_without_kdq_torch_or_the_whole_mlflow(
    site: Site, made: Make, tmp_path: Path
) -> None:
    (text,) = [block for block in blocks(ROOT / "docs" / "promote.md", "python") if "InferenceSession" in block]
    text = text.replace('{"input": np.zeros((1, 1, 8, 8)', '{"image": np.ones((1, 4)')
    words = [sys.executable, "-I", "-c", f"import sys\nsys.modules.update(dict.fromkeys({BARE}))\n"]
    assert promote(site, "digits", made(site).version).promoted
    file = next((site.home / "mlflow").rglob("model.onnx"))
    with mlflow_server(site) as address:
        words[-1] += text.replace("http://mlflow.example:5000", address)
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        right = onnxruntime.InferenceSession(file).run(["logits"], {"image": np.ones((1, 4), np.float32)})
        assert (done.stdout, done.returncode) == (f"{right}\n", 0), done.stderr
        file.write_bytes(file.read_bytes() + b" ")
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.stderr.endswith("AssertionError: model.onnx was changed\n")


CONNECT = """
import sys
from pathlib import Path
from kdq_core.recipe.spec import Site
from kdq_registry.environment import client
print(client(Site(home=Path(sys.argv[1]), tracking_uri=sys.argv[2])).get_experiment("0").name)
"""


@pytest.mark.slow
@pytest.mark.rare
def test_several_homes_that_meet_an_empty_postgresql_make_its_tables_once(tmp_path: Path) -> None:
    with postgres() as address:
        words = [[sys.executable, "-c", CONNECT, str(tmp_path / str(number)), address] for number in range(4)]
        started = [subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for one in words]
        ended = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * 4, ended
    assert [out for out, _ in ended] == ["Default\n"] * 4


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with users; whoever is not told otherwise may read."""
    pytest.importorskip("flask_wtf", reason="no Flask-WTF: pip install 'kdq[auth]'")
    site = Site(home=tmp_path_factory.mktemp("guarded") / "home")
    site.home.mkdir()
    config = site.home / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{site.home}/users.db\n"
        "admin_username = admin\nadmin_password = correct horse 9\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    with mlflow_server(
        site, "--app-name", "basic-auth", MLFLOW_AUTH_CONFIG_PATH=str(config), MLFLOW_FLASK_SERVER_SECRET_KEY="x" * 32
    ) as address:
        yield address


def as_user(monkeypatch: pytest.MonkeyPatch, name: str | None, password: str = "correct horse 9") -> None:
    for variable, value in (("MLFLOW_TRACKING_USERNAME", name), ("MLFLOW_TRACKING_PASSWORD", password)):
        if name is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, str(value))


def as_admin(server: str, path: str, **fields: str) -> None:
    """Call MLflow's API for users; its Python client imports a module that warns."""
    answer = requests.post(f"{server}/api/{path}", json=fields, auth=("admin", "correct horse 9"), timeout=30)
    assert answer.ok, answer.text


@pytest.mark.slow
@pytest.mark.rare
def test_a_server_with_users_lets_promote_who_may_edit_the_chain(
    guarded: str, tmp_path: Path, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(home=tmp_path, tracking_uri=guarded)
    as_user(monkeypatch, None)
    with pytest.raises(StageError) as caught:
        list_models(site)
    assert str(caught.value) == (
        f"the tracking server at {guarded!r} asks for credentials, and none are set; set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )
    as_user(monkeypatch, "ci", "wrong")
    with pytest.raises(StageError, match="and those of 'ci' are wrong or expired; set MLFLOW_TRACKING_USERNAME"):
        list_models(site)
    as_user(monkeypatch, "admin")
    first, second = made(site), made(site, seed=1)
    assert promote(site, "digits", first.version).promoted
    as_admin(guarded, "2.0/mlflow/users/create", username="ci", password="correct horse 9")
    as_user(monkeypatch, "ci")
    assert len(list_models(site)[0]) == 2
    assert fetch(site, "digits@champion").sha256 == first.file_sha256
    with pytest.raises(StageError) as caught:
        promote(site, "digits", second.version)
    assert str(caught.value) == (
        f"the tracking server at {guarded!r} does not allow this to 'ci'; ask its administrator for the right, or set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user who has it. To promote, a user needs EDIT on "
        "the model and on NAME.promotions"
    )
    as_user(monkeypatch, "admin")
    assert [row["aliases"] for row in list_models(site)[0]] == [[], ["champion"]]
    for name in ("digits", "digits.promotions"):
        right = {"username": "ci", "resource_type": "registered_model", "resource_id": name, "permission": "EDIT"}
        as_admin(guarded, "3.0/mlflow/users/permissions/grant", **right)
    as_user(monkeypatch, "ci")
    assert promote(site, "digits", second.version).promoted


@pytest.mark.slow
@pytest.mark.rare
def test_the_commands_tell_a_missing_right_in_one_paragraph(guarded: str, tmp_path: Path) -> None:
    done = kdq(tmp_path, guarded, "models")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the tracking server at {guarded!r} asks for credentials, and none are set")
    assert "Traceback" not in done.stderr
