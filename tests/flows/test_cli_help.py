"""`kdq --help`, completion in shells, and no colour where none is wanted."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

PANELS = {
    "Run": ["init", "run", "quantize", "compress", "replay"],
    "Inspect": [
        "check",
        "validate",
        "plan",
        "bench",
        "lock",
        "runs",
        "logs",
        "report",
        "compare",
        "explain",
        "synergy",
    ],
    "Registry": [
        "models",
        "history",
        "diff",
        "pull",
        "verify",
        "gc",
        "promote",
        "rollback",
        "encrypt",
        "decrypt",
        "watch",
    ],
    "Operate": ["status", "cancel", "up", "down", "serve", "deploy", "doctor", "reconcile", "schedules", "cache"],
    "Extend": ["schema", "plugins"],
}
COLOUR = re.compile(r"\x1b\[[\d;]*(?:3|4|9|10)\d[\d;]*m")
ESCAPE = "\x1b"


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m kdq_flows` in a child."""
    command = [sys.executable, "-m", "kdq_flows", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


def on_terminal(*arguments: str, **environment: str) -> str:
    """What a child prints on a terminal of its own."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kdq_flows", *arguments]
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"} | environment
    running = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    told = b""
    try:
        while chunk := os.read(ours, 65536):
            told += chunk
    except OSError:  # the child has closed its end
        pass
    os.close(ours)
    running.wait(timeout=60)
    return told.decode()


def test_the_help_shows_the_commands_in_panels(call) -> None:
    panels: dict[str, list[str]] = {}
    for line in call("--help")[1].splitlines():
        if heading := re.match(r"╭─ (\w+) ─", line):
            panels[heading[1]] = []
        elif command := re.match(r"│ (\w+) ", line):
            panels[list(panels)[-1]].append(command[1])
    assert panels.pop("Options") == []
    assert panels == PANELS


def test_python_m_kdq_flows_is_kdq() -> None:
    done = child("validate", "nothing.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no recipe file 'nothing.yaml'; check the path\n"
    assert "Usage: kdq plugins [OPTIONS] COMMAND [ARGS]..." in child("plugins", "--help").stdout


def completed(shell: str, line: str) -> list[str]:
    """What a shell is told to offer for a line that ends where the user presses tab."""
    words = line.split(" ")
    told = child(
        _KDQ_COMPLETE=f"complete_{shell}",
        COMP_WORDS="\n".join(words),
        COMP_CWORD=str(len(words) - 1),
        _TYPER_COMPLETE_ARGS=line,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )
    assert told.stderr == ""
    return told.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kdq plugins show log", ["logistic", "logit-kd"]),
        ("kdq plugins show --kind quantizer l", ["lsq"]),
        ("kdq plugins list --kind ", ["workload", "distiller", "quantizer", "target", "evaluator", "stage"]),
        ("kdq plugins list --kind t", ["target"]),
        ("kdq quantize --quantizer l", ["lsq"]),
        ("kdq compress --target o", ["onnxruntime-cpu", "openvino"]),
    ],
)
def test_names_and_kinds_of_plugins_are_completed_in_bash_and_fish(line: str, offered: list[str]) -> None:
    assert completed("bash", line) == offered
    assert completed("fish", line) == offered


def test_names_of_plugins_are_completed_in_zsh_and_recipes_as_files() -> None:
    assert completed("zsh", "kdq plugins show log") == ['_arguments \'*: :(("logistic"', '"logit-kd"))\'']
    assert completed("zsh", "kdq run re") == ["_files"]
    assert "".join(completed("bash", "kdq run re")) == ""  # so bash offers files
    asks = {"_KDQ_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert child(**asks, _TYPER_COMPLETE_ARGS="kdq run re").returncode == 1  # so fish offers files
    assert child(**asks, _TYPER_COMPLETE_ARGS="kdq plugins show log").returncode == 0


def test_a_module_in_quarantine_is_completed_too(guests: Path) -> None:
    path = os.pathsep.join(filter(None, (str(guests), os.environ.get("PYTHONPATH"))))
    line = {"COMP_WORDS": "kdq\nplugins\nshow\nbro", "COMP_CWORD": "3"}
    assert child(_KDQ_COMPLETE="complete_bash", PYTHONPATH=path, **line).stdout == "broken\n"


@pytest.mark.parametrize(
    ("shell", "script"),
    [("bash", "complete -o default -F _kdq_completion kdq"), ("zsh", "compdef _kdq_completion kdq"),
     ("fish", "complete --command kdq --no-files")],
)  # fmt: skip
def test_the_script_for_each_shell_completes_kdq(shell: str, script: str) -> None:
    told = child("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert script in told.stdout


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "kdq"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kdq_flows "$@"\n')
    program.chmod(0o755)
    script = child("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    press = "COMP_WORDS=(kdq plugins show log); COMP_CWORD=3; _kdq_completion kdq; echo ${COMPREPLY[@]}"
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", f"{script}\n{press}"], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "logistic logit-kd"


LISTING = ("plugins", "list", "--kind", "target")


@pytest.mark.parametrize("arguments", [("--help",), LISTING, ("nothing",)], ids=["help", "list", "error"])
def test_a_terminal_shows_colour_or_bold_and_no_color_and_a_pipe_do_not(arguments: tuple[str, ...]) -> None:
    assert ESCAPE in on_terminal(*arguments)
    assert not COLOUR.search(on_terminal(*arguments, NO_COLOR="1"))
    piped = child(*arguments)
    assert ESCAPE not in piped.stdout + piped.stderr


def test_completion_is_installed_in_colour_unless_no_color_is_set(tmp_path: Path) -> None:
    given = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert COLOUR.search(on_terminal("--install-completion", "bash", **given))
    told = on_terminal("--install-completion", "bash", NO_COLOR="1", **given)
    assert told.splitlines()[0].startswith("bash completion installed in ")
    assert "kdq" in (tmp_path / ".bashrc").read_text()


def test_a_long_line_wraps_between_words_on_a_terminal_and_stays_whole_in_a_pipe() -> None:
    recipe = str(Path(__file__).resolve().parents[2] / "recipes" / "digits.yaml")
    whole = child("validate", recipe).stdout
    told = on_terminal("validate", recipe, COLUMNS="60")
    assert told.split() == whole.split()
    assert whole.count("\n") == 1
    assert all(len(line) <= 60 or " " not in line for line in told.splitlines())
