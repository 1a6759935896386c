"""The run of one branch of a study: some of its stages run in other branches, and it may end before it registers."""

from __future__ import annotations

from kdq_core.errors import KdqError
from kdq_core.store.store import Entry
from kdq_flows.facts.parts import StageFacts
from kdq_flows.run.pipeline import Pipeline


class BranchPipeline(Pipeline):
    """A run that shares stages with those of other branches."""

    def want_all(self) -> None:
        """Run the stages too that were left out, if they are asked for; then write the page of the run anew."""
        self.left_out, self._page = self._not_asked, None

    def adopt(self, name: str, entry: Entry) -> None:
        """Take the entry of a stage that another branch of the study has brought into the store."""
        self.entries[name] = entry
        key = entry.manifest.key
        self._facts[name] = StageFacts(name=name, key=key, state="cached", seconds=0.0)

    def give_up(self, name: str, error: KdqError) -> None:
        """Count a stage as failed that failed in another branch of the study."""
        self.errors[name] = error

    @property
    def complete(self) -> bool:
        """Whether every stage of this run has ended, well or badly."""
        return self._wanted <= self.entries.keys() | self.errors.keys()
