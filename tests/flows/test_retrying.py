import pytest

from kdq_core.errors import RecipeError, StageError, TransientError
from kdq_core.recipe.spec import RetrySpec
from kdq_flows.run.retrying import JITTER, call_with_retries, delays, prefect_options

RETRY = RetrySpec(attempts=4, backoff_seconds=2.0)


class Failing:
    """Fails with each of the errors in turn, then returns 'done'."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_the_wait_doubles() -> None:
    assert delays(RETRY) == [2.0, 4.0, 8.0]


def test_transient_errors_are_tried_again_with_growing_waits() -> None:
    call, slept, told = Failing(TransientError("a"), TransientError("b")), [], []
    assert call_with_retries(call, RETRY, sleep=slept.append, on_retry=lambda n, e: told.append((n, str(e)))) == "done"
    assert told == [(1, "a"), (2, "b")]
    assert 2.0 <= slept[0] <= 2.0 * (1 + JITTER)
    assert 4.0 <= slept[1] <= 4.0 * (1 + JITTER)


@pytest.mark.parametrize("error", [RecipeError("r"), StageError("s"), ValueError("v")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    call = Failing(error)
    with pytest.raises(type(error)):
        call_with_retries(call, RETRY, sleep=lambda _s: None)
    assert call.calls == 1


def test_the_last_error_is_raised_when_the_tries_are_used_up() -> None:
    call = Failing(*(TransientError(str(n)) for n in range(9)))
    with pytest.raises(TransientError, match=r"^3$"):
        call_with_retries(call, RETRY, sleep=lambda _s: None)
    assert call.calls == 4


def test_one_attempt_means_no_retry_in_prefect() -> None:
    assert prefect_options(RetrySpec(attempts=1)) == {"retries": 0}


@pytest.mark.usefixtures("prefect_site")
@pytest.mark.parametrize(("error", "calls"), [(TransientError("busy"), 3), (StageError("broken"), 1)])
def test_prefect_retries_by_the_same_policy(error: Exception, calls: int) -> None:
    from prefect import flow, task

    call = Failing(*[error] * 9)
    options = prefect_options(RetrySpec(attempts=3, backoff_seconds=0.01))

    @task(**options)
    def stage() -> str:
        return call()

    @flow
    def pipeline() -> str:
        return stage()

    assert pipeline(return_state=True).is_failed()
    assert call.calls == calls
