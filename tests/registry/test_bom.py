"""The bill of materials of a version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from kdq_core.recipe.spec import Site
from kdq_core.store.records import ModelVersion
from kdq_registry.environment import client


def file_of(site: Site, name: str) -> str:
    address = client(site).get_model_version_download_uri("digits", "1")
    return (Path(unquote(urlsplit(address).path)) / name).read_text(encoding="utf-8")


def test_the_bill_of_materials_is_valid_cyclonedx(site: Site, registered: Callable[..., ModelVersion]) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="pip install cyclonedx-python-lib jsonschema")
    from cyclonedx.schema import SchemaVersion

    registered()
    text = file_of(site, "bom.json")
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = json.loads(text)
    broken["metadata"]["component"]["type"] = "model"
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_the_bill_names_model_data_figures_and_packages(site: Site, registered: Callable[..., ModelVersion]) -> None:
    version = registered()
    bill = json.loads(file_of(site, "bom.json"))
    model = bill["metadata"]["component"]
    assert (bill["bomFormat"], bill["specVersion"], model["type"]) == ("CycloneDX", "1.6", "machine-learning-model")
    assert model["hashes"] == [{"alg": "SHA-256", "content": version.file_sha256}]
    figures = {one["type"]: one["value"] for one in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert figures["top1"] == "0.97"
    parts = {one["name"]: one for one in bill["components"]}
    assert parts["onnxruntime"]["purl"] == f"pkg:pypi/onnxruntime@{parts['onnxruntime']['version']}"
    assert parts["data of digits"]["version"] == "b" * 12
    assert set(bill["dependencies"][0]["dependsOn"]) == {one["bom-ref"] for one in bill["components"]}
