"""Conformance kits for authors of plug-ins; KDQ's own plug-ins pass them too.

Each kit takes a plug-in. If the plug-in breaks a promise of its kind, the kit raises AssertionError and names it:

```python
from kdq_core.testing import check_distiller


def test_my_distiller_keeps_its_promises():
    check_distiller(MyDistiller())
```
"""

from kdq_core.testing.distillers import check_distiller
from kdq_core.testing.evaluators import check_evaluator
from kdq_core.testing.quantizers import check_quantizer
from kdq_core.testing.stages import check_stage
from kdq_core.testing.subjects import toy_subjects
from kdq_core.testing.targets import check_target
from kdq_core.testing.toys import TOYS, Toy, ToyNet
from kdq_core.testing.workloads import check_workload

__all__ = [
    "TOYS",
    "Toy",
    "ToyNet",
    "check_distiller",
    "check_evaluator",
    "check_quantizer",
    "check_stage",
    "check_target",
    "check_workload",
    "toy_subjects",
]
