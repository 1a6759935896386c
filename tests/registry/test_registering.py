import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import Artifact, EvaluationReport, Metric, ModelVersion
from kdq_registry.environment import client, mlflow_environment
from kdq_registry.logged import by_bytes
from kdq_registry.promotion import promote
from kdq_registry.registering import TAG_LIMIT, find_version, register, version_exists

BATCH = np.random.default_rng(5).normal(size=(7, 4)).astype(np.float32)


def model_folder(site: Site, version: ModelVersion) -> Path:
    """Where the version's files are."""
    from urllib.parse import unquote, urlsplit

    return Path(unquote(urlsplit(client(site).get_model_version_download_uri(version.name, version.version)).path))


def bare_numbers(file: Path) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"image": BATCH})[0]


def test_a_registered_version_is_the_file_with_signature_digest_and_lineage(
    site: Site, registered: Callable[..., ModelVersion], onnx_file: Callable[[int], Path]
) -> None:
    version = registered()
    data = onnx_file(0).read_bytes()
    assert (version.name, version.version, version.uri) == ("digits", 1, "models:/digits/1")
    assert version.file_sha256 == hashlib.sha256(data).hexdigest()
    assert (model_folder(site, version) / "model.onnx").read_bytes() == data
    tags = client(site).get_model_version("digits", "1").tags
    assert tags["kdq.sha256"] == version.file_sha256
    assert json.loads((model_folder(site, version) / "manifest.json").read_text())["parents"] == {"teacher": "a" * 64}
    assert EvaluationReport.model_validate_json(tags["kdq.report"]).value("int8", "top1") == 0.97
    requirements = (model_folder(site, version) / "requirements.txt").read_text()
    assert [line.partition("==")[0] for line in requirements.split()] == ["onnxruntime", "mlflow-skinny", "pandas"]


def test_pyfunc_and_bare_onnxruntime_give_the_same_numbers(site: Site, registered: Callable[..., ModelVersion]) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    folder = model_folder(site, registered())
    model = mlflow.pyfunc.load_model(str(folder))
    np.testing.assert_array_equal(model.predict({"image": BATCH})["logits"], bare_numbers(folder / "model.onnx"))
    np.testing.assert_array_equal(model.input_example["image"], np.ones((2, 4), np.float32))
    with pytest.raises(MlflowException, match="shape"):
        model.predict({"image": BATCH[0]})


def test_the_same_bytes_are_registered_once_and_other_bytes_anew(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    first = registered(0)
    assert registered(0) == first
    assert registered(1).version == 2
    assert find_version(site, "digits", first.file_sha256) == first
    assert find_version(site, "digits", "0" * 64) is None
    assert len(list((site.home / "mlflow" / "artifacts" / "digits" / "models").iterdir())) == 2


def test_the_same_bytes_from_three_homes_are_one_version(
    site: Site, registered: Callable[..., ModelVersion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [Site(home=tmp_path / name, tracking_uri=site.mlflow_uri) for name in ("second", "third")]
    first = registered(0)
    assert registered(0, site=others[0]) == first
    asked: list[str] = []

    def blind(*args: object) -> list[object]:
        """The third home looks before the first has made its version."""
        asked.append("")
        return [] if len(asked) == 1 else by_bytes(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("kdq_registry.registering.by_bytes", blind)
    assert registered(0, site=others[1]) == first
    assert len(asked) == 2
    mlflow = client(site)
    assert [int(one.version) for one in mlflow.search_model_versions("name = 'digits'")] == [1]
    models = [path for home in (site.home, *(one.home for one in others)) for path in home.rglob("model.onnx")]
    assert len(models) == 1
    assert promote(site, "digits", 1).promoted


def test_a_version_exists_until_it_is_deleted(site: Site, registered: Callable[..., ModelVersion]) -> None:
    first, second = registered(0), registered(1)
    assert version_exists(first)
    assert version_exists(first, site)
    client(site).delete_model_version("digits", "1")
    assert not version_exists(first)
    assert version_exists(second)
    assert not version_exists(second.model_copy(update={"file_sha256": "0" * 64}))
    assert not version_exists(second, Site(home=site.home / "elsewhere"))
    assert registered(0).version == 3


def test_asking_for_a_version_imports_no_mlflow(registered: Callable[..., ModelVersion]) -> None:
    version = registered()
    code = (
        "import sys\nfrom kdq_core.store.records import ModelVersion\n"
        "from kdq_registry.registering import version_exists\n"
        "print(version_exists(ModelVersion.model_validate_json(sys.argv[1])), 'mlflow' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, version.model_dump_json()]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "True False\n"


def test_a_version_belongs_to_the_run_that_made_it(
    site: Site, artifact: Artifact, report_of: Callable[..., EvaluationReport], onnx_file: Callable[[int], Path]
) -> None:
    recipe = Recipe(name="digits.v2", workload="digits")
    run_id = client(site).create_run("0").info.run_id
    version = register(
        site,
        recipe=recipe,
        artifact_file=onnx_file(0),
        artifact=artifact,
        report=report_of(),
        lineage={},
        run_id=run_id,
        example={"image": BATCH},
    )
    assert (version.name, version.run_id) == ("digits.v2", run_id)
    assert client(site).get_model_version("digits.v2", "1").run_id == run_id


def test_a_report_too_long_for_a_tag_keeps_what_gates_and_lists_read(
    site: Site, recipe: Recipe, artifact: Artifact, onnx_file: Callable[[int], Path]
) -> None:
    names = ["top1", "bytes", "coverage_macs", *(f"recall_of_class_{number}" for number in range(2000))]
    metrics = tuple(Metric(name=name, value=0.5, unit="fraction", direction="higher") for name in names)
    register(
        site,
        recipe=recipe,
        artifact_file=onnx_file(0),
        artifact=artifact,
        report=EvaluationReport(models={"int8": metrics}),
        lineage={},
        run_id=None,
        example={"image": BATCH},
    )
    tag = client(site).get_model_version("digits", "1").tags["kdq.report"]
    assert len(tag) < TAG_LIMIT
    kept = EvaluationReport.model_validate_json(tag).models["int8"]
    assert [metric.name for metric in kept] == ["top1", "bytes", "coverage_macs"]


def test_the_same_bytes_from_elsewhere_get_the_new_lineage(
    site: Site, recipe: Recipe, artifact: Artifact, report_of: Callable[..., EvaluationReport],
    registered: Callable[..., ModelVersion], onnx_file: Callable[[int], Path],
) -> None:  # fmt: skip
    first = registered()
    again = register(
        site,
        recipe=recipe,
        artifact_file=onnx_file(0),
        artifact=artifact,
        report=report_of(),
        lineage={"teacher": "c" * 64},
        run_id=None,
        example={"image": BATCH},
    )
    assert again == first
    assert json.loads((model_folder(site, first) / "manifest.json").read_text())["parents"] == {"teacher": "c" * 64}


REGISTER = """
import sys
from pathlib import Path
import numpy as np
from kdq_core.store.records import Artifact, EvaluationReport
from kdq_core.recipe.spec import Recipe, Site
from kdq_registry.registering import register
home, file, artifact = sys.argv[1:]
version = register(
    Site(home=Path(home)), recipe=Recipe(name="digits", workload="digits"), artifact_file=Path(file),
    artifact=Artifact.model_validate_json(artifact), report=EvaluationReport(models={}), lineage={}, run_id=None,
    example={"image": np.ones((1, 4), np.float32)},
)
print(version.model_dump_json())
"""


def test_two_processes_in_a_fresh_home_register_one_version_and_write_nowhere_else(
    tmp_path: Path, artifact: Artifact, onnx_file: Callable[[int], Path]
) -> None:
    home, empty = tmp_path / "home", tmp_path / "empty"
    empty.mkdir()
    argv = [sys.executable, "-c", REGISTER, str(home), str(onnx_file(0)), artifact.model_dump_json()]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "ORT_", "XDG_"))}
    started = [
        subprocess.Popen(argv, cwd=empty, env=clean | {"HOME": str(empty)}, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert answers[0] == answers[1]
    assert ModelVersion.model_validate_json(answers[0]).version == 1
    assert len(client(Site(home=home)).search_model_versions("name = 'digits'")) == 1
    assert list(empty.iterdir()) == []


@pytest.mark.rare
def test_mlflow_models_serve_gives_the_numbers_of_bare_onnxruntime(
    site: Site, registered: Callable[..., ModelVersion], tmp_path: Path
) -> None:
    folder = model_folder(site, registered())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--port", str(port)]
    argv += ["--host", "127.0.0.1", "--env-manager", "local"]
    environment = os.environ | mlflow_environment(site)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            argv, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        body = json.dumps({"inputs": {"image": BATCH.tolist()}}).encode()
        answer = posted(f"http://127.0.0.1:{port}/invocations", body, server, tmp_path / "serve.log")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    served = np.array(answer["predictions"]["logits"], np.float32)
    np.testing.assert_array_equal(served, bare_numbers(folder / "model.onnx"))


def posted(url: str, body: bytes, server: subprocess.Popen[bytes], log: Path) -> dict[str, dict[str, list[float]]]:
    """The JSON answer to `body`, once the server listens."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())
