"""Conformance kit for distillers."""

from __future__ import annotations

from collections.abc import Callable

from kdq_core.plugins.kinds import Distiller
from kdq_core.testing.distillers import gradients, projectors, values
from kdq_core.testing.distillers.models import Subject


def check_distiller(distiller: Distiller, *, places: int = 0) -> None:
    """Check the promises of a distiller.

    Equal models give zero soft loss, others a soft loss of at least zero: its terms are distances. For others the soft
    terms alone, without the loss on hard labels, give the student's logits (of a distiller of features: its features) a
    gradient that is not zero; gradients are finite, for logits and features of up to 1e4 and in bf16 too; none reaches
    the teacher; the loss is continuous in every field that is a number, at both ends of its range; the order of the
    samples does not matter; each term is a mean over the batch: a batch given twice costs at most 1.5 times what it
    costs once, room for contrast that grows by the logarithm; a batch of one sample and a problem of one class work;
    models of other dtypes, and of a GPU where there is one, work; the hard weight is finite and not negative. A
    distiller that works without labels says so, by `needs_labels`. One that says `takes_top_k` does not see a constant
    added to each row of the teacher's logits.

    A distiller of features is tried on a map `[B, C, H, W]`, a sequence `[B, L, C]` and a vector `[B, C]` at once. Its
    projectors, where student and teacher differ in channels, get finite gradients that are not all zero.

    A loss that is above zero for equal models by its nature, such as cross entropy with the teacher's answer, says so
    with the class attribute `zero_for_equal_models: ClassVar[bool] = False`. Its terms must then be finite and not
    negative for equal models.

    What the plug-in itself raises is a broken promise too: the text then names the class, the case that was tried, the
    exception and the line of the plug-in it came from.

    A distiller of outputs with an option `temperature` has its factor T^2: from T = 10 to 40 the gradient of its soft
    terms does not fall below a third. It may grow; that of `dist` does, whose correlations do not shrink with T.

    Args:
        distiller: the plug-in, with the options to check.
        places: positions of a sequence; 0 means logits `[B, C]`.

    Raises:
        AssertionError: a promise is broken; the text says which.
    """
    for check in CHECKS:
        check(Subject(distiller, places))


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
