"""What is tried again: a `TransientError`, and nothing else. One policy for Prefect and for the plain loop."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kdq_core.errors import TransientError
from kdq_core.recipe.stages import RetrySpec

T = TypeVar("T")

JITTER = 0.5
"""A wait is lengthened by up to this share of itself, so that branches that failed together do not return together."""


def is_transient(error: BaseException | None) -> bool:
    """Whether another try may succeed."""
    return isinstance(error, TransientError)


def delays(retry: RetrySpec) -> list[float]:
    """Seconds to wait before the second, third, ... try, without jitter: doubled each time."""
    return [retry.backoff_seconds * 2**n for n in range(retry.attempts - 1)]


def retry_condition(_task: Any, _task_run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn`: true for a state that failed with a `TransientError`."""
    return is_transient(state.result(raise_on_failure=False))


def prefect_options(retry: RetrySpec) -> dict[str, Any]:
    """The policy as options of a Prefect task (`task.with_options(**...)`)."""
    if retry.attempts == 1:
        return {"retries": 0}
    return {
        "retries": retry.attempts - 1,
        "retry_delay_seconds": delays(retry),
        "retry_jitter_factor": JITTER,
        "retry_condition_fn": retry_condition,
    }


def call_with_retries(
    call: Callable[[], T],
    retry: RetrySpec,
    *,
    on_retry: Callable[[int, TransientError], None] = lambda _attempt, _error: None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call until it returns, fails for good, or the tries are used up.

    Args:
        call: what to try.
        retry: number of tries and first wait.
        on_retry: told the number of the try that failed (from 1) and its error, before the wait.
        sleep: waits; seconds.

    Raises:
        TransientError: the last one, when every try failed with one.
    """
    for attempt, delay in enumerate(delays(retry), start=1):
        try:
            return call()
        except TransientError as error:
            on_retry(attempt, error)
        sleep(delay * (1 + JITTER * random.random()))  # noqa: S311 - spreads retries, guards nothing
    return call()
