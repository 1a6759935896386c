"""The files of `flows/deploy/`."""

import json
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kdq_core.recipe.site import ENVIRONMENT
from kdq_flows.cli import app

FOLDER = Path(__file__).parents[2] / "flows" / "deploy"
UNIT = FOLDER / "kdq-serve.service"


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (found,) = manifest["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_the_systemd_unit_runs_a_command_of_kdq_and_starts_it_again() -> None:
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    assert unit.sections() == ["Unit", "Service", "Install"]
    service = unit["Service"]
    program, command = service["ExecStart"].split()
    assert program.startswith("/")
    assert program.endswith("/kdq")
    registered = {str(one.name or (one.callback and one.callback.__name__)) for one in app.registered_commands}
    assert command in registered
    assert (service["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")
    assert service["KillMode"] == "mixed", "kdq serve ends its own worker; systemd must not do so before it"
    assert service["OOMPolicy"] == "continue", "a stage that is killed for its memory must not end kdq serve"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_the_pods_of_kubernetes_run_a_command_of_kdq_with_variables_that_it_reads() -> None:
    kinds = {one["kind"]: one for one in manifests("kubernetes.yaml")}
    assert list(kinds) == ["Namespace", "ConfigMap", "Deployment"]
    assert set(kinds["ConfigMap"]["data"]) <= set(ENVIRONMENT.values())
    program, *words = container(kinds["Deployment"])["command"]
    assert (program, words) == ("kdq", ["serve", "--nodes"])
    assert "--nodes" in CliRunner().invoke(app, ["serve", "--help"]).stdout
    spec = kinds["Deployment"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert (
        container(kinds["Deployment"])["envFrom"][0]["configMapRef"]["name"] == kinds["ConfigMap"]["metadata"]["name"]
    )


def test_the_worker_that_starts_jobs_serves_the_pool_of_nodes_and_may_make_jobs() -> None:
    from kdq_core.recipe.spec import Site
    from kdq_flows.prefect.pools import nodes_of

    kinds = {one["kind"]: one for one in manifests("kubernetes-jobs.yaml")}
    (site,) = [one for one in manifests("kubernetes.yaml") if one["kind"] == "ConfigMap"]
    words = container(kinds["Deployment"])["command"]
    pool = nodes_of(Site(home=Path("/kdq"), pool=site["data"]["KDQ_POOL"]))
    assert words == ["prefect", "worker", "start", "--pool", pool, "--type", "kubernetes"]
    assert {"create", "delete"} <= set(kinds["Role"]["rules"][1]["verbs"])
    name = kinds["ServiceAccount"]["metadata"]["name"]
    assert kinds["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == name
    assert kinds["RoleBinding"]["subjects"][0]["name"] == name
    template = json.loads((FOLDER / "kubernetes-pool.json").read_text())
    job = template["job_configuration"]["job_manifest"]
    assert (job["kind"], job["spec"]["backoffLimit"]) == ("Job", 0), "KDQ retries; Kubernetes must not"
    assert container(job)["envFrom"][0]["configMapRef"]["name"] == site["metadata"]["name"]


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes-jobs.yaml"])
def test_each_object_of_kubernetes_says_what_it_is(name: str) -> None:
    for one in manifests(name):
        assert {"apiVersion", "kind", "metadata"} <= one.keys()
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "kdq"
