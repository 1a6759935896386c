"""What becomes of runs of a schedule that were missed, or are due while the one before still runs."""

from datetime import UTC, datetime, timedelta

import pytest

from kdq_flows.prefect.policy import Due, Missed, Policy, Skip, overlapped, skipping

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def due(minutes: float, began: float | None = None, ended: float | None = None, *, given_up: bool = False) -> Due:
    times = [None if one is None else at(one) for one in (began, ended)]
    return Due(name=f"run-{minutes:g}", due=at(minutes), began=times[0], ended=times[1], given_up=given_up)


def left(runs: list[Due], policy: Policy, now: datetime, *, outage: bool) -> list[str]:
    """The runs that the policy lets work, of runs that are due."""
    skipped = [skipping(one, [o for o in runs if o is not one], policy, now, outage=outage) for one in runs]
    return [one.name for one, why in zip(runs, skipped, strict=True) if why is None]


@pytest.mark.parametrize(
    ("missed", "works"), [("one", ["run-20"]), ("none", ["run-20"]), ("all", ["run-0", "run-10", "run-20"])]
)
def test_after_an_outage_of_two_ticks_the_policy_says_what_catches_up(missed: Missed, works: list[str]) -> None:
    """The run of minute 20 is in its lag of ten minutes; with `one` it stands for all three."""
    policy = Policy(missed=missed, allowed_lag_seconds=600)
    runs = [due(0), due(10), due(20)]
    assert left(runs, policy, at(25), outage=True) == works
    assert left(runs, policy, at(25), outage=False) == works


def test_one_run_catches_up_although_all_were_missed_and_with_none_nothing_does() -> None:
    runs = [due(0), due(10), due(20)]
    assert left(runs, Policy(missed="one", allowed_lag_seconds=60), at(25), outage=True) == ["run-20"]
    assert left(runs, Policy(missed="none", allowed_lag_seconds=60), at(25), outage=True) == []
    given_up = [due(0), due(10, given_up=True)]
    assert "run-0" in left(given_up, Policy(allowed_lag_seconds=60), at(25), outage=True), "nobody makes up for it"


def test_a_run_in_its_lag_is_not_missed_unless_there_was_an_outage() -> None:
    """Otherwise runs whose processes start more slowly than the interval is long would all be skipped."""
    policy = Policy(missed="one", allowed_lag_seconds=600)
    assert left([due(0), due(1)], policy, at(2), outage=False) == ["run-0", "run-1"]
    assert left([due(0), due(1)], policy, at(2), outage=True) == ["run-1"]


def test_a_skipped_run_says_why() -> None:
    policy = Policy(missed="one", allowed_lag_seconds=60)
    assert skipping(due(0), [due(10)], policy, at(15)) == Skip(
        name="SkippedLate",
        message="missed at 2026-01-02 12:00:00+00:00; the run that was due at 2026-01-02 12:10:00+00:00 makes up",
    )
    none = Policy(missed="none", allowed_lag_seconds=60)
    assert skipping(due(0), [], none, at(15)) == Skip(
        name="SkippedLate", message="more than 60 s after its time 2026-01-02 12:00:00+00:00"
    )
    assert skipping(due(0), [], none, at(1)) is None
    assert skipping(due(10), [due(0, began=0)], policy, at(10)) == Skip(
        name="SkippedOverlap", message="the run 'run-0' was at work at 2026-01-02 12:10:00+00:00"
    )


def test_what_was_at_work_at_the_time_of_a_run_decides_about_overlap() -> None:
    at_work = [due(0, began=0), due(0, began=0, ended=11)]
    not_at_work = [due(0, began=0, ended=9), due(0, began=0, given_up=True), due(0), due(0, began=12)]
    for other in at_work:
        assert skipping(due(10), [other], Policy(), at(12)) is not None
        assert skipping(due(10), [other], Policy(overlap="queue"), at(12)) is None
    for other in not_at_work:
        assert skipping(due(10), [other], Policy(), at(12)) is None


def test_only_the_policy_cancel_ends_a_run_and_only_when_the_next_one_is_due() -> None:
    cancel = Policy(overlap="cancel")
    assert overlapped([due(0, began=0), due(10)], cancel, at(11))
    assert not overlapped([due(0, began=0), due(10)], cancel, at(9))
    assert not overlapped([due(0, began=0, ended=5), due(10)], cancel, at(11))
    assert not overlapped([due(0, began=0), due(10, given_up=True)], cancel, at(11))
    assert not overlapped([due(0, began=0), due(10)], Policy(overlap="queue"), at(11))
    assert not overlapped([due(0, began=0), due(10)], Policy(), at(11))
