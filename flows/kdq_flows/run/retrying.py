"""Retries: KDQ retries a stage after a `TransientError` only, by one policy with and without Prefect."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kdq_core.errors import TransientError
from kdq_core.recipe.stages import RetrySpec

T = TypeVar("T")

JITTER = 0.5
"""KDQ lengthens a wait by up to this share, at random, so that branches that failed together retry apart."""


def is_transient(error: BaseException | None) -> bool:
    """Whether another try may succeed."""
    return isinstance(error, TransientError)


def delays(retry: RetrySpec) -> list[float]:
    """Seconds to wait before the second, third, ... try, without jitter; each wait doubles the one before."""
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
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """Call until the call returns, raises another error than `TransientError`, or has no tries left.

    Args:
        call: the function to try.
        retry: number of tries and first wait.
        on_retry: called before each wait with the number of the failed try (from 1) and its error.
        sleep: waits for a number of seconds.

    Raises:
        TransientError: every try failed with one; this is the last.
    """
    for attempt, delay in enumerate(delays(retry), start=1):
        try:
            return call()
        except TransientError as error:
            on_retry(attempt, error)
        sleep(delay * (1 + JITTER * random.random()))  # noqa: S311 - spreads retries, guards nothing
    return call()
