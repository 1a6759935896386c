"""The command line: what asks for nothing heavy answers at once; an error is one paragraph and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from kdq_core.errors import StageError
from kdq_flows.cli import app
from kdq_flows.cli.run import Progressing
from kdq_flows.facts.result import RunResult

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "prefect", "mlflow", "pandas", "onnx", "onnxruntime", "openvino", "sklearn", "matplotlib"}
RECIPE = "name: x\nworkload: digits\n"


def kdq(*arguments: str, code: int = 0, path: Path | None = None, cwd: Path | None = None) -> str:
    """Run the command in a child; gives stdout, or stderr where a failure is expected."""
    paths = filter(None, (path and str(path), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", "from kdq_flows.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [(["--help"], {"pydantic", "yaml", "kdq_core"}), (["--version"], {"pydantic", "yaml", "kdq_core", "rich"}),
     (["validate", str(ROOT / "recipes" / "digits.yaml")], {"packaging", "rich"}),
     (["plugins", "list", "--json"], {"packaging", "rich"}),
     (["plugins", "show", "digits", "--json"], {"packaging", "rich"}), (["schema"], {"packaging", "rich"})],
    ids=["help", "version", "validate", "plugins list", "plugins show", "schema"],
)  # fmt: skip
def test_what_runs_nothing_imports_nothing_heavy(arguments: list[str], unneeded: set[str]) -> None:
    code = f"""
import atexit, sys
atexit.register(lambda: print("HEAVY", sorted({HEAVY | unneeded} & set(sys.modules))))
sys.argv = ["kdq", *{arguments}]
from kdq_flows.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_validate_looks_for_the_teachers_files(call, tmp_path) -> None:
    Path("r.yaml").write_text(RECIPE + "teacher: {members: [{source: onnx, file: t.onnx}]}\n")
    assert call("validate", "r.yaml") == (
        2,
        "",
        f"error: r.yaml:3: the teacher's file 't.onnx' is not there, seen from {str(tmp_path)!r}; correct 'file' in "
        "'teacher.members', or give its whole path\n",
    )


def test_validate_names_the_stage_that_reads_a_given_student(call) -> None:
    Path("net.safetensors").touch()
    Path("r.yaml").write_text(RECIPE + "student: {source: checkpoint, file: net.safetensors}\nstages: [quantize]\n")
    assert "; stages read_student, quantize\n" in call("validate", "r.yaml")[1]


def test_validate_says_what_the_recipe_names(call) -> None:
    Path("r.yaml").write_text(RECIPE)
    assert call("validate", "r.yaml") == (
        0,
        "r.yaml is valid: workload digits; distiller logit-kd; quantizer auto; target onnxruntime-cpu; "
        "evaluators quality, size, latency, coverage, parity; stages train_teacher, cache_teacher, distill, place, "
        "quantize, export, evaluate, register\n",
        "",
    )
    code, out, _ = call("validate", "r.yaml", "--json")
    (facts,) = json.loads(out)
    assert (code, facts["file"], facts["recipe"], facts["valid"]) == (0, "r.yaml", "x", True)
    assert facts["quantizer"] == ["auto"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE + "quantise: {}", "error: r.yaml:3: unknown key 'quantise'; did you mean 'quantize'? allowed: budget, "
         "distill, evaluate, gates, kdq, name, quantize, register, retry, seed, stages, student, target, teacher, "
         "workload\n"),
        (RECIPE + "distill:\n  options: {alpha: 2}",
         "error: r.yaml:4: option 'alpha' of distiller 'logit-kd' is 2; allowed: a number, 0 to 1\n"),
        (RECIPE + "distill: {use: logit_kd}",
         "error: r.yaml:3: no distiller named 'logit_kd'; did you mean 'logit-kd'? "
         "Installed: attention-transfer, crd, dist, dkd, fitnet, hard-label, logistic, logit-kd, mixed-kd, mse-logits, "
         "multi-label-kd, regression-kd, rkd, similarity, token-kd.\n"),
        ("", "error: recipe 'r.yaml' is empty; it needs at least 'name' and 'workload'\n"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_one_paragraph_and_exit_code_2(text: str, message: str, call) -> None:
    Path("r.yaml").write_text(text)
    assert call("validate", "r.yaml") == (2, "", message)


def test_debug_shows_the_traceback_before_the_paragraph(call) -> None:
    code, _, err = call("--debug", "validate", "nothing.yaml")
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("error: no recipe file 'nothing.yaml'; check the path\n")


def test_a_command_that_does_not_exist_is_exit_code_2(call) -> None:
    code, out, err = call("nothing")
    assert (code, out) == (2, "")
    assert "No such command 'nothing'" in err


def test_the_help_tells_the_exit_codes(call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    told = (
        "Exit codes: 0 success; 1 a failed run, gates not met, or an unexpected error; 2 a wrong request, and nothing"
    )
    lost = "3 no branch meets the goals of 'select', or another process was faster with a promotion"
    assert f"{told} ran; {lost}; 130 an interrupt." in " ".join(out.split())


@pytest.fixture
def raising():
    """Add a command that raises what the test puts into the list."""
    raises: list[BaseException] = []
    before = list(app.registered_commands)

    @app.command("raise")
    def _raise() -> None:
        raise raises[0]

    yield raises
    app.registered_commands[:] = before


def test_a_failed_run_is_exit_code_1_and_an_interrupt_130(call, raising: list[BaseException]) -> None:
    raising.append(StageError("the loss is not finite"))
    assert call("raise") == (1, "", "error: the loss is not finite\n")
    raising[:] = [KeyboardInterrupt()]
    assert call("raise") == (130, "", "")
    raising[:] = [typer.Exit(3)]
    assert call("raise") == (3, "", "")


def test_an_unexpected_error_is_one_paragraph_with_a_log(call, raising: list[BaseException], tmp_path: Path) -> None:
    raising.append(ZeroDivisionError("by nothing"))
    code, out, err = call("raise")
    (log,) = (tmp_path / "home" / "logs").iterdir()
    assert (code, out) == (1, "")
    assert err == (
        "error: unexpected error ZeroDivisionError: by nothing; run again with 'kdq --debug' to see where it comes "
        f"from; the traceback is in 'home/logs/{log.name}'\n"
    )
    assert log.read_text().startswith("Traceback (most recent call last):")


def test_a_home_that_cannot_be_written_hides_no_error(call, raising: list[BaseException], tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    raising.append(ZeroDivisionError())
    code, _, err = call("raise")
    assert code == 1
    assert err == (
        "error: unexpected error ZeroDivisionError: no text; run again with 'kdq --debug' to see where it comes from\n"
    )


def test_a_wrong_environment_variable_is_one_line_and_exit_code_2(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDQ_THREADS", "many")
    assert call("models") == (2, "", "error: KDQ_THREADS is 'many'; allowed: a whole number, 1 to 1024\n")


def test_a_guest_is_listed_a_broken_one_is_quarantined_and_the_rest_works(guests: Path, tmp_path: Path) -> None:
    rows = json.loads(kdq("plugins", "list", "--json", path=guests))
    by_name = {row["name"]: row for row in rows}
    assert by_name["guest-rounding"] == {
        "name": "guest-rounding", "kind": "quantizer", "distribution": "kdq-guest-rounding", "version": "0.3.0",
        "state": "ok", "summary": "widest range seen, times a margin",
    }  # fmt: skip
    assert by_name["broken"]["state"] == "quarantined"
    assert by_name["broken"]["reason"] == "ModuleNotFoundError: No module named 'a_module_nobody_has'"
    assert by_name["digits"]["state"] == "ok"
    (tmp_path / "r.yaml").write_text(RECIPE + "quantize: {use: guest-rounding, options: {margin: 1.1}}\n")
    assert "quantizer guest-rounding" in kdq("validate", "r.yaml", path=guests, cwd=tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE + "quantize: {use: guest-rounding, options: {margin: 3}}\n")
    assert kdq("validate", "r.yaml", path=guests, cwd=tmp_path, code=2) == (
        "error: r.yaml:3: option 'margin' of quantizer 'guest-rounding' is 3; allowed: a number, 0.5 to 2\n"
    )
    (tmp_path / "r.yaml").write_text(RECIPE + "quantize: {use: guest-broken}\n")
    assert kdq("validate", "r.yaml", path=guests, cwd=tmp_path, code=2) == (
        "error: r.yaml:3: no quantizer named 'guest-broken'; did you mean 'guest-rounding'? "
        "Installed: apot, auto, codebook, dorefa, dynamic, fixed-step, guest-rounding, lsq, minmax-qat, pact, "
        "power-of-two, static, weight-only. "
        "Quarantined: kdq-guest-broken (ModuleNotFoundError: No module named 'a_module_nobody_has').\n"
    )


@pytest.mark.parametrize(
    ("raised", "code", "status", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted", "interrupted in distill; run the same command to resume"),
        (ZeroDivisionError("by nothing"), 1, "failed", "ZeroDivisionError: by nothing"),
    ],
)
def test_a_run_that_is_broken_off_still_ends_with_its_json(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, status: str, text: str
) -> None:
    def stop(*_: object, observer: Progressing, **__: object) -> None:
        for name, state in (("teacher", "ran"), ("distill", "interrupted")):
            observer.stage_started(name)
            observer.stage_ended(name, state, 1.0)
        raise raised

    monkeypatch.setattr("kdq_flows.running.run_recipe", stop)
    (tmp_path / "r.yaml").write_text("name: x\nworkload: digits\n")
    found, out, _ = call("run", "r.yaml", "--json")
    told = json.loads(out)
    assert (found, told["status"], told["error"]) == (code, status, text)
    found, out, err = call("run", "r.yaml")
    assert (found, out) == (code, "")
    assert text in err


def test_a_dry_run_of_a_part_refuses_what_the_run_would_refuse(call) -> None:
    Path("r.yaml").write_text(RECIPE)
    code, out, err = call("run", "r.yaml", "--only", "distill", "--dry-run")
    assert (code, out) == (2, "")
    assert "stage 'distill' reads what 'train_teacher' gives, which is not in the store and no part of this run" in err


def test_what_a_plugin_prints_while_a_recipe_runs_corrupts_no_json(call, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = RunResult(run="r", status="completed", seconds=1, stages=(), models={})

    def run(*_: object, **__: object) -> tuple[RunResult, None]:
        print("hello")
        return facts, None

    monkeypatch.setattr("kdq_flows.running.run_recipe", run)
    Path("r.yaml").write_text(RECIPE)
    assert call("run", "r.yaml", "--json") == (0, facts.model_dump_json() + "\n", "hello\n")


def test_a_plan_refuses_a_device_and_a_home_that_a_run_could_not_use(call, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("r.yaml").write_text(RECIPE)
    Path("file").touch()
    monkeypatch.setenv("KDQ_HOME", "file/home")
    for command in (["plan", "r.yaml"], ["run", "r.yaml", "--no-server"]):
        code, out, err = call(*command)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: cannot write to KDQ_HOME {str(Path('file/home').resolve())!r}: ")
    monkeypatch.setenv("KDQ_HOME", "home")
    monkeypatch.setattr("kdq_core.plan.machine.version_of", lambda _: "2.9.1+cpu")
    monkeypatch.setenv("KDQ_DEVICE", "cuda:0")
    for command in (["plan", "r.yaml"], ["run", "r.yaml", "--no-server"]):
        assert call(*command) == (
            2,
            "",
            "error: the device 'cuda:0' was asked for, but torch 2.9.1+cpu is a build for CPUs; set KDQ_DEVICE=cpu, or "
            "install a CUDA build\n",
        )
    assert not Path("home").exists()
