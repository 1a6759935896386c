"""`kdq plugins new` and `kdq plugins check`: a package for each kind, and what a plug-in keeps and breaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdq_core.plugins.bases import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDQ_HOME", str(tmp_path / "home"))
    paths = (str(tmp_path / "site"), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


def called(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=500)


def kdq(*words: str) -> subprocess.CompletedProcess[str]:
    return called("-m", "kdq", *words)


PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")


def installed(kind: str) -> None:
    """Write a package, and install it into a folder that Python looks into."""
    made = kdq("plugins", "new", kind, "soft-one")
    assert made.returncode == 0, made.stderr
    done = called(*PIP, "--no-build-isolation", "--target", "site", "./kdq-soft-one")
    assert done.returncode == 0, done.stderr


def keeps_its_promises(kind: str) -> None:
    installed(kind)
    tested = called("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "kdq-soft-one/tests")
    assert "1 passed" in tested.stdout, tested.stdout + tested.stderr


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.rare) for kind in ("distiller", "workload")])
def test_a_new_package_passes_its_own_test_when_it_is_installed(kind: str) -> None:
    keeps_its_promises(kind)
    shown = kdq("plugins", "show", "soft-one")
    assert shown.stdout.startswith(f"{kind} soft-one, kdq-soft-one 0.1.0\n")
    checked = kdq("plugins", "check", "soft-one")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.startswith("kept    each option has a description\n")
    assert f"{kind} 'soft-one' keeps its promises: " in checked.stdout.splitlines()[-1]


@pytest.mark.rare
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("distiller", "workload")])
def test_a_new_package_of_another_kind_passes_its_own_test_too(kind: str) -> None:
    keeps_its_promises(kind)


def test_a_new_package_says_what_it_wrote_and_what_to_do() -> None:
    done = kdq("plugins", "new", "quantizer", "soft-round")
    assert done.stdout == (
        "wrote  kdq-soft-round/README.md\n"
        "wrote  kdq-soft-round/pyproject.toml\n"
        "wrote  kdq-soft-round/src/kdq_soft_round/__init__.py\n"
        "wrote  kdq-soft-round/src/kdq_soft_round/plugin.py\n"
        "wrote  kdq-soft-round/src/kdq_soft_round/soft_round.py\n"
        "wrote  kdq-soft-round/tests/test_promises.py\n\n"
        "pip install --no-deps --editable kdq-soft-round\n"
        "kdq plugins check soft-round\n"
        "then put your method into kdq-soft-round/src/kdq_soft_round/soft_round.py\n"
    ), done.stderr
    texts = [path.read_text() for path in Path("kdq-soft-round").rglob("*") if path.is_file()]
    assert not [text for text in texts if "my-plugin" in text or "my_plugin" in text or "MyPlugin" in text]
    assert "class SoftRound(Quantizer):" in "".join(texts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quantiser", "mine"),
         "no kind of plug-in named 'quantiser'; did you mean 'quantizer'? Kinds: distiller, evaluator, quantizer, "
         "stage, target, workload."),
        (("quantizer", "Soft Round"),
         "a plug-in cannot be called 'Soft Round'; write small letters and digits, and '-' between words, such as "
         "soft-round"),
        (("quantizer", "class"),
         "a plug-in cannot be called 'class'; write small letters and digits, and '-' between words, such as "
         "soft-round"),
        (("quantizer", "static"), "kdq has a quantizer named 'static'; choose another name"),
        (("distiller", "mine", "there"), "'there' is there already; name another folder"),
    ],
)  # fmt: skip
def test_a_wrong_request_for_a_package_writes_nothing(words: tuple[str, ...], message: str) -> None:
    Path("there").mkdir()
    done = kdq("plugins", "new", *words)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")
    assert [path.name for path in Path().rglob("*")] == ["there"]


BROKEN = """
import torch
from kdq_core.api import Distiller, Evaluator, Field, FakeQuantize, Grid, LossTerms, MinMaxFakeQuantize, Quantizer

class Wrong(Distiller):
    temperature: float = Field(default=2.0, ge=1, le=20, description="softens")

    def loss(self, student, teacher, batch):
        p, q = ((one.logits / self.temperature).softmax(1) for one in (teacher, student))
        return LossTerms({"kl": (p.detach() * (p.detach() / q).log()).sum(1).mean()}, 1.0)

class Silent(Evaluator):
    def evaluate(self, candidate, baseline, batches):
        return None

class Raises(Evaluator):
    def evaluate(self, candidate, baseline, batches):
        return candidate.nothing

class Hard(Quantizer):
    def fake_quantizer(self, place):
        return Rounds(place)

class Rounds(MinMaxFakeQuantize):
    def forward(self, x):
        if self.observing:
            self.observe(x.detach())
        grid = self.grid()
        return x.div(grid.spread(x)).round().mul(grid.spread(x))

class Nothing:
    pass
"""


@pytest.mark.parametrize(
    ("name", "kept", "last"),
    [
        pytest.param("Silent", ["each option has a description"],
         "broken  Silent.evaluate should return a tuple of metrics, or () if it does not apply, but it returned a "
         "value of type NoneType", marks=pytest.mark.rare),
        pytest.param("Raises", ["each option has a description"],
         "broken  AttributeError: 'Subject' object has no attribute 'nothing' (in ", marks=pytest.mark.rare),
        ("Hard", ["each option has a description"],
         "broken  no straight-through gradient: `round` has none; the fake-quantizer of 'stem.weight' gives "),
    ],
)  # fmt: skip
def test_the_first_broken_promise_of_a_file_is_told(name: str, kept: list[str], last: str) -> None:
    Path("mine.py").write_text(BROKEN)
    done = kdq("plugins", "check", f"./mine.py:{name}")
    *lines, broken = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert lines == [f"kept    {one}" for one in kept]
    assert broken.startswith(last)


@pytest.mark.rare
def test_options_are_given_and_what_is_no_plugin_is_refused() -> None:
    Path("mine.py").write_text(BROKEN)
    done = kdq("plugins", "check", "./mine.py:Wrong", "--set", "temperature=4")
    assert done.returncode == 1
    assert "from temperature 5 to 20 the gradient of the soft terms falls to 0.0" in done.stdout.splitlines()[-1]
    wrong = kdq("plugins", "check", "./mine.py:Wrong", "--set", "temperature=40")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: option 'temperature' of distiller './mine.py:Wrong' is 40; allowed: ")
    nothing = kdq("plugins", "check", "./mine.py:Nothing")
    assert (nothing.returncode, nothing.stderr) == (
        2,
        "error: './mine.py:Nothing' is no plug-in; make it a class that inherits from one of Workload, Distiller, "
        "Quantizer, Target, Evaluator, Stage of kdq_core.api\n",
    )
    unknown = kdq("plugins", "check", "statik")
    assert unknown.stderr.startswith("error: no plug-in named 'statik'; did you mean 'static'?")
