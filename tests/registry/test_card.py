import json
from collections.abc import Callable
from importlib.metadata import version

import pytest

from kdq_core.recipe.spec import RegisterSpec, Site
from kdq_core.store.records import EvaluationReport, Metric, ModelVersion, OperatorCoverage
from kdq_registry.card import DESCRIPTION_LIMIT, card
from kdq_registry.environment import client


@pytest.fixture
def lineage() -> dict[str, str]:
    return {"train_teacher": "a" * 64, "distill": "c" * 64, "data": "b" * 64}


def section(text: str, name: str) -> list[str]:
    """The lines of one section of a card that are not empty."""
    return [line for line in text.split(f"## {name}\n")[1].split("\n## ")[0].splitlines() if line]


def test_a_card_says_what_from_what_and_how_to_load_it(site, recipe, artifact, report_of, lineage) -> None:  # type: ignore[no-untyped-def]
    text = card(site, recipe, artifact.model_copy(update={"quantizer": "static"}), report_of(), lineage)
    assert text.startswith(
        f"# digits\n\nAn int8 model for `onnxruntime-cpu`, which KDQ {version('kdq')} made by distillation and "
        "quantization. Recipe `digits`, seed 0.\n"
    )
    assert section(text, "Made from") == [
        "- data: workload `digits`, fingerprint `bbbbbbbbbbbb`",
        "- stages: `train_teacher`, `distill`",
        "- distillers: `logit-kd`",
        "- quantizer: `static`, 8-bit weights, 8-bit activations",
    ]
    loading = "\n".join(section(text, "Load it"))
    assert f'mlflow.set_tracking_uri("{site.mlflow_uri}")' in loading
    assert 'mlflow.pyfunc.load_model("models:/digits@champion")' in loading
    assert 'model.predict({"image": image})' in loading
    assert loading.endswith("- Input `image`: float32 [N, 4]\n- Output `logits`: float32 [N, 3]")


def test_figures_stand_beside_each_other_with_their_intervals(site, recipe, artifact, lineage) -> None:  # type: ignore[no-untyped-def]
    def metrics(value: float) -> tuple[Metric, ...]:
        return (
            Metric(name="top1", value=value, unit="fraction", direction="higher", low=value - 0.1, high=value + 0.05),
            Metric(name="bytes", value=12345, unit="bytes", direction="lower"),
        )

    report = EvaluationReport(models={"student": metrics(0.75)[:1], "int8": metrics(0.5)})
    table = section(card(site, recipe, artifact, report, lineage), "Figures")
    assert table[:4] == [
        "| | int8 | student |",
        "|---|---|---|",
        "| top1 | 0.5 [0.4, 0.55] | 0.75 [0.65, 0.8] |",
        "| bytes | 12,345 |  |",
    ]
    assert table[4].startswith("Test split; 95 % intervals in brackets. Measured with onnxruntime ")


def test_a_card_tells_gates_limits_and_licence(site, recipe, artifact, report_of, lineage) -> None:  # type: ignore[no-untyped-def]
    slow = OperatorCoverage(path="head", operator="linear", kernel="Gemm", int8=False, reason="the rule skips it")
    artifact = artifact.model_copy(update={"operators": (slow,), "weight_bits_used": 7})
    text = card(site, recipe, artifact, report_of(top1=0.5), lineage)
    assert section(text, "Gates")[0] == "- **not met**: int8 top1 ≥ 0.95 x teacher top1 (it is 0.5)"
    limits = section(text, "Limits")
    assert limits[0] == "The recipe states none (`register: {limits: ...}`). What KDQ knows:"
    assert "- The file has 7-bit weights, because the CPU that made it lacks VNNI." in limits
    assert "- `head` runs in float: the rule skips it" in limits
    assert section(text, "Licence") == ["Not stated. Write `register: {license: ...}` into the recipe."]
    said = RegisterSpec(license="CC-BY-4.0", limits="Not for cheques.")
    text = card(site, recipe.model_copy(update={"register_as": said}), artifact, report_of(), lineage)
    assert section(text, "Limits")[0] == "Not for cheques."
    assert section(text, "Licence") == ["CC-BY-4.0"]


def test_a_card_names_no_password(site, recipe, artifact, report_of, lineage) -> None:  # type: ignore[no-untyped-def]
    site = Site(home=site.home, tracking_uri="postgresql://kdq:secret@host/mlflow")
    text = card(site, recipe, artifact, report_of(), lineage)
    assert "secret" not in text
    assert "postgresql://kdq:***@host/mlflow" in text


def test_a_short_card_shows_figures_with_intervals_gates_and_size(site, recipe, artifact, lineage) -> None:  # type: ignore[no-untyped-def]
    plain = {"unit": "fraction", "direction": "higher", "value": 0.5}
    metrics = tuple(
        Metric.model_validate({"name": name, **plain, **({"low": 0.4, "high": 0.6} if name == "f1" else {})})
        for name in ("top1", "f1", "bytes", "recall_of_class_0", "parity_flips")
    )
    report = EvaluationReport(models={"int8": metrics})
    table = section(card(site, recipe, artifact, report, lineage, limit=DESCRIPTION_LIMIT), "Figures")
    assert table[2:-1] == ["| top1 | 0.5 |", "| f1 | 0.5 [0.4, 0.6] |", "| bytes | 0.5 |", "| parity_flips | 0.5 |"]
    assert "| recall_of_class_0 | 0.5 |" in section(card(site, recipe, artifact, report, lineage), "Figures")


def test_a_card_that_is_too_long_loses_the_last_figures(site, recipe, artifact, lineage) -> None:  # type: ignore[no-untyped-def]
    names = ["top1", *(f"recall_of_class_{number}" for number in range(500))]
    metrics = tuple(
        Metric(name=name, value=0.5, unit="fraction", direction="higher", low=0.4, high=0.6) for name in names
    )
    report = EvaluationReport(models={"int8": metrics})
    assert "recall_of_class_499" in card(site, recipe, artifact, report, lineage)
    text = card(site, recipe, artifact, report, lineage, limit=DESCRIPTION_LIMIT)
    assert DESCRIPTION_LIMIT - 50 < len(text) <= DESCRIPTION_LIMIT
    assert "| top1 | 0.5 [0.4, 0.6] |" in text
    assert "recall_of_class_499" not in text
    assert text.endswith("- Output `logits`: float32 [N, 3]\n")
    limits = RegisterSpec(limits="long words " * 90)
    recipe = recipe.model_copy(update={"register_as": limits})
    assert len(card(site, recipe, artifact, report, lineage, limit=1000)) <= 1000


def test_the_card_is_the_versions_description_and_a_sealed_file_of_it(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered()
    mlflow = client(site)
    about = mlflow.get_model_version("digits", "1").description
    assert about.startswith("# digits\n")
    assert "it is 0.97)" in about
    path = next((site.home / "mlflow" / "artifacts" / "digits" / "models").rglob("model-card.md"))
    assert path.read_text().startswith("# digits\n")
    sealed = json.loads((path.parent / "manifest.json").read_text())
    assert "model-card.md" in [file["path"] for file in sealed["files"]]
    registered(top1=0.5)
    assert "it is 0.5)" in mlflow.get_model_version("digits", "1").description
    assert "it is 0.5)" in path.read_text()
