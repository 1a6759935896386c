"""The demo recipe through the Python API: what the README promises of it."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from kdq_core.recipe.spec import Site
from kdq_flows import compress
from kdq_registry.promotion import promote
from kdq_registry.pulling import pull

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "digits.yaml"


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_gives_an_int8_model_that_keeps_its_promises(tmp_path: Path) -> None:
    site = Site(home=tmp_path / "home", threads=1)
    result = compress(RECIPE, site, server=False)
    assert result.status == "completed"
    teacher, student, int8 = (result.models[role] for role in ("teacher", "student", "int8"))
    assert int8["top1"] >= student["top1"] - 0.01
    assert int8["top1"] >= 0.95 * teacher["top1"]
    assert teacher["top1"] >= 0.97
    assert student["parameters"] >= 100_000
    assert student["bytes"] / int8["bytes"] >= 3.7
    assert (int8["coverage_macs"], int8["parity_flips"]) == (1.0, 0.0)
    assert int8["parity_p99_lsb"] <= 1
    assert result.version is not None
    pull(site, "digits/1", tmp_path / "model")
    outcomes = load_file(tmp_path / "model" / "samples.safetensors")
    assert outcomes["top1"].mean() == pytest.approx(int8["top1"])
    assert promote(site, "digits", 1).promoted
    again = compress(str(RECIPE), site, server=False)
    assert again.status == "no-news"
    assert again.version == result.version
    assert again.models == result.models
