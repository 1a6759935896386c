"""Plans are made as for a CPU of which nothing is known, so that their notes are the same on each machine."""

import pytest


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdq_core.plan.plan.instruction_sets", frozenset)
