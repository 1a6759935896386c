"""The files of `flows/deploy/`."""

from configparser import ConfigParser
from pathlib import Path

from kdq_flows.cli import app

UNIT = Path(__file__).parents[2] / "flows" / "deploy" / "kdq-serve.service"


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
