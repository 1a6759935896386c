"""Whether a workload takes views of its samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Workload


def takes_views(workload: Workload) -> bool:
    """Whether `batches` of this workload takes `view`; workloads for older versions of KDQ do not."""
    return _takes_view(type(workload).batches)


@cache
def _takes_view(batches: Callable[..., object]) -> bool:
    parameters = inspect.signature(batches).parameters
    return "view" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
