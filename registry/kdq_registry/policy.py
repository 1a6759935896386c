"""A promoter's policy file: gates, trusted signers, and what to compare with the champion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from kdq_core.errors import RecipeError, did_you_mean, listing, nearest
from kdq_core.frozen import Frozen
from kdq_core.reading.recipe_file import Kind, read_document
from kdq_core.recipe.explain import problems, summary
from kdq_core.recipe.spec import Gate
from kdq_core.store.hashing import canonical, sha256_of
from kdq_core.store.records import EvaluationReport

KEY = re.compile(r"[0-9a-f]{64}")
FILE = Kind("policy", "one of 'gates', 'signers', 'worse' and 'compare'")


class Policy(Frozen):
    """What a promoter asks of a version, beside that its files are as sealed and answer as sealed."""

    gates: tuple[Gate, ...] | None = Field(default=None, description="instead of the gates that are sealed")
    signers: tuple[str, ...] = Field(default=(), description="public keys, one of which must have signed the version")
    worse: Literal["refuse", "allow"] = Field(
        default="refuse", description="refuse: a version that is shown to be worse than the champion is not promoted"
    )
    compare: tuple[str, ...] | None = Field(
        default=None, description="metrics to compare with the champion sample by sample; default: all that are kept"
    )

    @field_validator("signers")
    @classmethod
    def _keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            if not KEY.fullmatch(key):
                raise ValueError("a signer is a public key of 64 hex digits, as `kdq verify` prints it")
        return value

    @property
    def digest(self) -> str:
        """The sha256 of the policy."""
        return sha256_of(canonical(self.model_dump(mode="json")))


def read_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        RecipeError: the file cannot be read, or a value in it is wrong; the message names file and line.
    """
    document = read_document(path, FILE)
    try:
        return Policy.model_validate(document.value)
    except ValidationError as error:
        lines = problems(error, Policy, where=document.where, key="key", of="of a policy")
        raise RecipeError(summary(lines, f"policy '{path}'")) from None


def check_metrics(gates: Sequence[Gate], report: EvaluationReport, name: str, version: int) -> None:
    """Refuse a policy with a gate on a metric that the report does not have.

    Raises:
        RecipeError: it names the nearest metrics, and where all of them stand.
    """
    for gate in gates:
        known = {metric.name for metric in report.models.get(gate.of, ())}
        if not known:
            raise RecipeError(
                f"the policy has a gate on the model {gate.of!r}, and the report of version {version} of {name!r} has: "
                f"{listing(report.models)}{did_you_mean(gate.of, report.models)}"
            )
        if gate.metric not in known:
            raise RecipeError(
                f"the policy has a gate on the metric {gate.metric!r}, which the report of version {version} of "
                f"{name!r} does not have{did_you_mean(gate.metric, known) or '.'} It has: "
                f"{nearest(gate.metric, known)}; `kdq pull {name}/{version} DIR` writes all of them to "
                "DIR/model-card.md"
            )
