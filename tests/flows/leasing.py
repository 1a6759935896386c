"""What the tests of leases share."""

import time
from collections.abc import Callable

from kdq_core.plugins.contract import Needs

CPU = Needs(device="cpu")
ALONE = Needs(device="cpu", alone=True)


def within(seconds: float) -> Callable[[], None]:
    """A `check` that ends the waiting after some seconds."""
    until = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > until:
            raise TimeoutError

    return check
