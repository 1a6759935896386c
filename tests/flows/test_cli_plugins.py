"""`kdq plugins` and `kdq schema`: what is installed, what shadows what, and why a plug-in cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Install = Callable[[str, str], None]
HEAD = "from kdq_core.api import PluginSpec, hookimpl\n"
SOFT = """@hookimpl
def kdq_distillers():
    yield PluginSpec(name="soft", target="a_module_nobody_has:Soft", summary="a test")
"""
DIGITS = """@hookimpl
def kdq_workloads():
    yield PluginSpec(name="digits", target="nothing:Digits", summary="other digits")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a one-module distribution, of version 1.0 and with the entry point `main`, beside KDQ."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str) -> None:
        module = f"cli_{name.replace('-', '_')}_{abs(hash(tmp_path))}"
        (tmp_path / f"{module}.py").write_text(HEAD + source)
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[kdq]\nmain = {module}\n")

    return install


def test_plugins_list_groups_names_and_summaries_by_kind(call) -> None:
    assert call("plugins", "list", "--kind", "evaluator") == (
        0,
        """\
evaluators
  cost           compressed bytes, parameters by bits, operations by kernel,
                 loading, memory, energy
  coverage       share of the work that runs in int8 kernels
  detection      mean average precision of boxes
  latency        times of a call, throughput, and speed-up over the float
                 student
  parity         the file against its simulation in PyTorch, in LSBs and top-1
                 flips
  quality        top-1, F1, calibration or errors, and the difference from the
                 float student
  ranking        hit rate and discounted gain of the first k items
  robustness     quality on corrupted inputs, and whether int8 loses more than
                 float
  size           bytes of the file and of its weights by type
  transcription  word and character error rates
  translation    BLEU and chrF
""",
        "",
    )
    whole = call("plugins", "list")[1].splitlines()
    assert max(map(len, whole)) <= 80
    assert [line for line in whole if not line.startswith(" ")] == [
        "workloads", "distillers", "quantizers", "targets", "evaluators", "stages",
    ]  # fmt: skip


def test_plugins_list_names_guests_with_what_shadows_them_and_why_one_is_in_quarantine(call, install: Install) -> None:
    install("guest-a", DIGITS + SOFT)
    install("guest-b", SOFT)
    install("guest-bad", "raise OSError('no licence')")
    text = call("plugins", "list")[1]
    digits = """\
  digits              other digits (guest-a 1.0); 'digits' alone means that of
                      'kdq'; write 'guest-a/digits'
  digits              scikit-learn's 8x8 handwritten digits, 10 classes, two
                      residual nets
"""
    soft = """\
  soft                a test (guest-a 1.0); 'guest-b' brings one of this name
                      too; write 'guest-a/soft'
  soft                a test (guest-b 1.0); 'guest-a' brings one of this name
                      too; write 'guest-b/soft'
"""
    assert digits in text
    assert soft in text
    assert text.endswith("in quarantine\n  main                OSError: no licence (guest-bad 1.0)\n")
    rows = json.loads(call("plugins", "list", "--json")[1])
    assert [row for row in rows if row["state"] != "ok"] == [
        {"name": "soft", "kind": "distiller", "distribution": "guest-a", "version": "1.0", "state": "shadowed",
         "summary": "a test", "reason": "'guest-b' brings one of this name too; write 'guest-a/soft'"},
        {"name": "soft", "kind": "distiller", "distribution": "guest-b", "version": "1.0", "state": "shadowed",
         "summary": "a test", "reason": "'guest-a' brings one of this name too; write 'guest-b/soft'"},
        {"name": "digits", "kind": "workload", "distribution": "guest-a", "version": "1.0", "state": "shadowed",
         "summary": "other digits", "reason": "'digits' alone means that of 'kdq'; write 'guest-a/digits'"},
        {"name": "main", "kind": "", "distribution": "guest-bad", "version": "1.0", "state": "quarantined",
         "summary": "", "reason": "OSError: no licence"},
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["main", "guest-bad", "guest-bad/main"])
def test_plugins_show_says_why_a_module_is_in_quarantine(name: str, call, install: Install) -> None:
    install("guest-bad", "raise OSError('no licence')")
    assert call("plugins", "show", name) == (
        2,
        "",
        "error: plug-in module 'main' of guest-bad 1.0 is in quarantine: OSError: no licence; reinstall or upgrade "
        "'guest-bad'\n",
    )


def test_plugins_show_says_why_a_plugin_is_broken(call, install: Install) -> None:
    install("guest-a", SOFT)
    assert call("plugins", "show", "soft") == (
        2,
        "",
        "error: distiller 'soft' of guest-a 1.0 cannot be loaded: ModuleNotFoundError: No module named "
        "'a_module_nobody_has'; reinstall or upgrade 'guest-a'\n",
    )


def test_a_name_that_is_not_there_may_be_that_of_a_plugin_in_quarantine(call, install: Install) -> None:
    install("guest-bad", "raise OSError('no licence')")
    assert call("plugins", "show", "tiny", "--kind", "target") == (
        2,
        "",
        "error: no plug-in named 'tiny'. Installed: onnxruntime-cpu, openvino. Quarantined: guest-bad (OSError: no "
        "licence).\n",
    )


@pytest.mark.parametrize(
    "arguments", [["plugins", "list", "--json"], ["plugins", "show", "loud", "--json"], ["schema"]]
)
def test_a_plugin_that_prints_while_it_loads_corrupts_no_json(arguments: list[str], call, install: Install) -> None:
    loud = SOFT.replace("soft", "loud").replace('"a_module_nobody_has:Soft"', 'f"{__name__}:Loud"')
    body = "    def loss(self, student, teacher, batch):\n        raise NotImplementedError\n"
    install("guest-loud", f"from kdq_core.api import Distiller\nprint('hello')\n{loud}\nclass Loud(Distiller):\n{body}")
    code, out, err = call(*arguments)
    assert (code, err) == (0, "hello\n")
    assert json.loads(out)


def test_plugins_list_filters_by_kind(call) -> None:
    code, out, _ = call("plugins", "list", "--kind", "target", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == ["onnxruntime-cpu", "openvino"]
    assert call("plugins", "list", "--kind", "quantiser") == (
        2,
        "",
        "error: no kind of plug-in named 'quantiser'; did you mean 'quantizer'? "
        "Kinds: distiller, evaluator, quantizer, stage, target, workload.\n",
    )


def test_plugins_show_gives_the_method_card_and_the_options(call) -> None:
    code, out, _ = call("plugins", "show", "logit-kd")
    assert code == 0
    assert "Source: Hinton" in out
    code, out, _ = call("plugins", "show", "logit-kd", "--kind", "distiller", "--json")
    alpha, *others = json.loads(out)["options"]
    assert alpha["bounds"] == "0 to 1"
    assert [one["option"] for one in others] == ["temperature", "standardize"]
    assert call("plugins", "show", "logit")[::2] == (
        2,
        "error: no plug-in named 'logit'; did you mean 'logit-kd'? Installed: "
        + ", ".join(sorted(row["name"] for row in json.loads(call("plugins", "list", "--json")[1])))
        + ".\n",
    )


def test_schema_writes_what_it_prints(call, tmp_path: Path) -> None:
    code, printed, _ = call("schema")
    assert code == 0
    assert call("schema", "--output", "s.json") == (0, "", "")
    assert Path("s.json").read_text() == printed
    assert call("schema", "--output", "no/s.json") == (
        2, "", "error: 'no/s.json' cannot be written: no such file or directory\n",
    )  # fmt: skip
