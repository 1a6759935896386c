"""The entries of the chain of promotions: what each says, its digest, and how a version's tags hold it."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from kdq_core.frozen import Frozen
from kdq_core.store.hashing import canonical, sha256_of
from kdq_registry.environment import actor
from kdq_registry.signing import sign, signed_by, signer_of

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site

ENTRY_TAG, DIGEST_TAG, EXPECTED_TAG = "kdq.entry", "kdq.digest", "kdq.expected"
SIGNATURE_TAG, SETTLED_TAG = "kdq.signature", "kdq.settled"
NOTHING = "none"
"""What the first entry of a chain expects."""
MOVES = frozenset({"move", "force", "rollback"})
"""The kinds of entries that move an alias."""
Kind = Literal["move", "refuse", "force", "rollback", "repair", "outside"]
Aliases = dict[str, int]


class Entry(Frozen):
    """One act on the aliases of a model, as the chain keeps it."""

    format: Literal[1] = 1
    model: str
    sequence: int = Field(ge=1)
    previous: str = Field(description="digest of the entry before, or `none`")
    actor: str = Field(description="`user@host`")
    kind: Kind
    alias: str = Field(description="the alias that the act is about")
    source: int | None = Field(alias="from", description="the version that had the alias")
    to: int | None = Field(description="the version that was to have it, or that it was found at (`outside`)")
    aliases: Aliases = Field(description="the aliases after the act")
    policy: str = Field(default="", description="digest of the policy file")
    report: str = Field(default="", description="digest of the version's report")
    seal: str = Field(default="", description="digest of the version's manifest")
    reason: str = ""
    time: str = Field(description="UTC, by the actor's clock")
    signer: str = Field(default="", description="public key of the signature")
    ticket: str = Field(description="random, so that no two entries have one digest")

    @property
    def data(self) -> bytes:
        """The bytes that are hashed and signed."""
        return canonical(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """The sha256 of the entry."""
        return sha256_of(self.data)


@dataclass(frozen=True)
class Link:
    """An entry in its place: the number of the version of `NAME.promotions` that holds it."""

    entry: Entry
    number: int
    created: int
    settled: bool

    @property
    def digest(self) -> str:
        """The sha256 of the entry."""
        return self.entry.digest


def new_entry(site: Site, model: str, before: Link | None, *, kind: Kind, alias: str, aliases: Aliases,
              came_from: int | None, to: int | None, **fields: Any) -> Entry:  # fmt: skip
    """Make the entry that follows `before`."""
    return Entry.model_validate(
        {
            "model": model,
            "sequence": 1 if before is None else before.entry.sequence + 1,
            "previous": NOTHING if before is None else before.digest,
            "actor": actor(),
            "kind": kind,
            "alias": alias,
            "from": came_from,
            "to": to,
            "aliases": dict(sorted(aliases.items())),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "signer": signer_of(site),
            "ticket": uuid.uuid4().hex,
            **fields,
        }
    )


def tags_of(site: Site, entry: Entry) -> dict[str, str]:
    """The tags of the version that holds the entry."""
    tags = {ENTRY_TAG: entry.data.decode(), DIGEST_TAG: entry.digest, EXPECTED_TAG: entry.previous}
    return tags | ({SIGNATURE_TAG: sign(site, entry.data)} if entry.signer else {})


def wrong_with(model: str, tags: Mapping[str, str]) -> str:
    """Say what is wrong with the tags of an entry; empty if nothing is."""
    try:
        entry = Entry.model_validate_json(tags.get(ENTRY_TAG, ""))
    except ValidationError:
        return "holds no entry that can be read"
    if entry.digest != tags.get(DIGEST_TAG) or entry.previous != tags.get(EXPECTED_TAG):
        return "was changed: its digest is another"
    if entry.model != model:
        return f"is an entry of model {entry.model!r}"
    if entry.signer and not signed_by(entry.signer, tags.get(SIGNATURE_TAG, ""), entry.data):
        return f"has no signature of its signer {entry.signer[:12]}"
    return ""
