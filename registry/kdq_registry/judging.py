"""Judge a version: its gates, and the comparison with the champion on the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kdq_core.frozen import Frozen
from kdq_core.plan.gates import GateVerdict, judge
from kdq_core.recipe.spec import Gate
from kdq_registry.aliases import CHAMPION
from kdq_registry.blessing import Blessed
from kdq_registry.comparing import OF, Comparison, compare
from kdq_registry.policy import Policy

if TYPE_CHECKING:
    from kdq_core.store.records import EvaluationReport

NO_CHAMPION = "there is no champion yet"
OTHER_SAMPLES = "undecided: version and champion were not measured on the same samples"


class Judgement(Frozen):
    """What gates and comparison say of a version."""

    verdicts: tuple[GateVerdict, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    note: str = ""
    against: tuple[str, ...] = ()


def judged(policy: Policy, ours: Blessed, champion: Blessed | None, note: str) -> Judgement:
    """Judge a version by a policy.

    Args:
        policy: its gates, or those of the seal.
        ours: the version.
        champion: the champion of now; `None` if there is none, or it cannot be read.
        note: why the champion cannot be read.

    Returns:
        The verdicts, and each reason against the promotion in words.
    """
    seal, report = ours.sealed.seal, ours.sealed.report
    gates = seal.gates if policy.gates is None else policy.gates
    same = champion is not None and bool(seal.data) and seal.data == champion.sealed.seal.data
    verdicts = tuple(_verdict(gate, report, champion, same=same, note=note) for gate in gates)
    comparisons: tuple[Comparison, ...] = ()
    if champion is not None and same:
        wanted = policy.compare
        comparisons = tuple(
            one for one in compare(ours.samples, champion.samples, report) if wanted is None or one.metric in wanted
        )
    if champion is not None and not comparisons:
        note = note or OTHER_SAMPLES
    against = tuple(_against(gates, verdicts, comparisons if policy.worse == "refuse" else ()))
    return Judgement(verdicts=verdicts, comparisons=comparisons, note=note, against=against)


def _verdict(gate: Gate, report: EvaluationReport, champion: Blessed | None, *, same: bool, note: str) -> GateVerdict:
    """A gate relative to the champion is met if there is none, and undecided if it was measured on other samples."""
    if gate.relative_to != CHAMPION:
        return judge((gate,), report)[0]
    theirs = champion.sealed.report.models.get(gate.of, ()) if champion else ()
    (verdict,) = judge((gate,), report.model_copy(update={"models": {**report.models, CHAMPION: theirs}}))
    if champion is None:
        return verdict.model_copy(update={"met": not note, "note": note or NO_CHAMPION})
    metric = next((one for one in report.models.get(gate.of, ()) if one.name == gate.metric), None)
    if metric is not None and metric.samples and not same:
        return verdict.model_copy(update={"met": False, "note": OTHER_SAMPLES})
    return verdict


def _against(
    gates: Sequence[Gate], verdicts: Sequence[GateVerdict], comparisons: Sequence[Comparison]
) -> Iterator[str]:
    if not gates:
        yield (
            "it has no gates, so nothing says that it is good enough; write 'gates' into its recipe and run it again, "
            "or give a policy with --policy"
        )
    for verdict in verdicts:
        if not verdict.met:
            measured = "not measured" if verdict.value is None else f"{verdict.value:.6g}"
            yield f"{verdict.rule} is not met: {verdict.note or measured}"
    for one in comparisons:
        if one.verdict == "worse":
            by = f"p = {one.p:.2g}" if one.p is not None else f"95 % interval {one.low:+.4g} to {one.high:+.4g}"
            yield (
                f"{OF} {one.metric} {one.version:.4g} is worse than the champion's {one.champion:.4g} on the same "
                f"{one.samples} samples ({one.test}, {by})"
            )
