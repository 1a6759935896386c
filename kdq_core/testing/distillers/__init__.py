"""Conformance kit for distillers."""

from __future__ import annotations

from collections.abc import Callable

from kdq_core.plugins.kinds import Distiller
from kdq_core.testing.declared import Tell, described, promise, silent
from kdq_core.testing.distillers import gradients, projectors, values
from kdq_core.testing.distillers.models import Subject


def check_distiller(distiller: Distiller, *, places: int = 0, tell: Tell = silent) -> None:
    """Check the promises of a distiller.

    - Each option has a description.
    - The soft loss is zero for equal models, and at least zero for others: its terms are distances.
    - For unequal models, the soft terms alone, without the loss on hard labels, give the student's logits a gradient
      that is not zero. For a distiller of features, they give one to the student's features.
    - Gradients are finite, also for logits and features of up to 1e4 and in bf16. The teacher gets none.
    - The loss is continuous in every field that is a number, at both ends of its range.
    - The order of the samples does not matter.
    - Each term is a mean over the batch: a batch given twice costs at most 1.5 times as much as once. A contrastive
      term may grow with the logarithm of the batch size.
    - A batch of one sample, a problem of one class, models of other dtypes, and models on a GPU (if there is one) work.
    - The hard weight is finite and not negative.
    - Unlabelled batches work, unless the class says `needs_labels = True`.
    - If `takes_top_k()` gives true, a constant added to each row of the teacher's logits changes nothing.

    A distiller of features is tried on a map `[B, C, H, W]`, a sequence `[B, L, C]` and a vector `[B, C]` at once. If
    student and teacher differ in channels, its projectors get finite gradients that are not all zero.

    Some losses are above zero for equal models, such as cross entropy with the teacher's answer. Their class says
    `zero_for_equal_models: ClassVar[bool] = False`. Their terms must then be finite and not negative for equal models.

    An exception from the plug-in is a broken promise too. The text then names the class, the case that was tried, the
    exception, and the line of the plug-in that raised it.

    A distiller of outputs with an option `temperature` must multiply by T^2: from T = 10 to 40, or from a quarter of
    the option's upper bound to that bound if it is lower, the gradient of its soft terms must not fall below a third.
    It may grow, as with `dist`, whose correlations do not shrink with T.

    Args:
        distiller: the plug-in, with the options to check.
        places: positions of a sequence; 0 means logits `[B, C]`.
        tell: hears of each promise that is kept.

    Raises:
        AssertionError: a promise is broken; the text says which.
    """
    described(distiller)
    tell("each option has a description")
    for check in CHECKS:
        check(Subject(distiller, places))
        tell(promise(check))


CHECKS: tuple[Callable[[Subject], None], ...] = (
    values.usable_terms,
    values.zero_for_equal_models,
    values.distances,
    gradients.soft_terms_teach,
    gradients.not_lost_with_temperature,
    gradients.finite_gradients,
    gradients.other_dtypes_and_devices,
    gradients.no_gradient_into_the_teacher,
    values.order_does_not_matter,
    values.mean_over_the_batch,
    values.top_k_is_enough,
    values.says_whether_it_needs_labels,
    values.continuous_at_the_ends,
    projectors.trained_projectors,
)
