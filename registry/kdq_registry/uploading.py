"""Uploads the events of a spool to MLflow, in order and once only, also after a kill at any moment.

Every call may be repeated: MLflow's database drops a point of equal run, name, step, time and value, and takes equal
params, tags, data sets, files and ends again. Only opening a run is not so; KDQ finds an open run by its tag
`mlflow.kdqEvent`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from kdq_core.errors import KdqError, TransientError
from kdq_core.locks import held, try_held
from kdq_registry.environment import client, mlflow_errors
from kdq_registry.experiments import experiment_id
from kdq_registry.page import dataset, training_page
from kdq_registry.spool import Event, Spool, left, place_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

EVENT_TAG = "mlflow.kdqEvent"
"""Tag of a run: its id in the events. MLflow's pages show no tag with this beginning."""
_MOST_POINTS = 1000
"""MLflow takes no more in one call."""


class Upload:
    """Sends one spool.

    Attributes:
        spool: the events.
        runs: MLflow's ids of the runs that are open, by the id in the events.
    """

    def __init__(self, site: Site, spool: Spool) -> None:
        """Send to the site's MLflow."""
        self.spool, self._site = spool, site
        self.runs: dict[str, str] = {}
        self._experiment: str | None = None

    def send(self, refused: Callable[[str], None]) -> int:
        """Send all events that MLflow does not have yet; gives their number.

        Args:
            refused: hears of an event that MLflow does not take, and would not take later; KDQ leaves it out.

        Raises:
            TransientError: the server cannot be reached. The events wait.
            KdqError: MLflow does not open the run, or does not know the user. The events wait.
        """
        with mlflow_errors(self._site), held(self.spool.lock):
            return self.send_locked(refused)

    def send_locked(self, refused: Callable[[str], None]) -> int:
        """Do what `send` does, for a caller that holds the lock of the spool."""
        spool, number = self.spool, 0
        with mlflow_errors(self._site):
            mlflow = client(self._site)
            for events, end in _joined(spool.events(spool.sent)):
                self._taken(mlflow, events, refused)
                spool.mark(end)
                number += len(events)
        return number

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the pipeline's run; `None` before MLflow has it."""
        return self.runs.get(self.spool.first.get("run", ""))

    def page(self, server: str) -> str | None:
        """Address of the pipeline's run on the MLflow server at `server`; `None` before MLflow has it."""
        if self.run_id is None:
            return None
        return training_page(server, f"experiments/{self._experiment}/runs/{self.run_id}")

    def _taken(self, mlflow: MlflowClient, events: Sequence[Event], refused: Callable[[str], None]) -> None:
        """Send events in one call; if MLflow does not take them, each by itself."""
        try:
            with mlflow_errors(self._site):
                self._sent(mlflow, events)
        except KdqError as error:
            if events[0]["do"] == "open" or not _of_the_event(error):
                raise
            if len(events) == 1:
                refused(str(error))
                return
            for event in events:
                self._taken(mlflow, [event], refused)

    def _sent(self, mlflow: MlflowClient, events: Sequence[Event]) -> None:
        """Send one event, or several that hold points alone."""
        event = events[0]
        if event["do"] == "open":
            self._open(mlflow, event)
            return
        run, at = self._run(mlflow, event["run"]), event["at"]
        if event["do"] == "log":
            from mlflow.entities import Metric, Param, RunTag

            points = [Metric(name, value, one["at"], step) for one in events for name, value, step in _points(one)]
            params = [Param(name, value) for name, value in event.get("params", {}).items()]
            tags = [RunTag(name, value) for name, value in event.get("tags", {}).items()]
            mlflow.log_batch(run, points, params, tags)
        elif event["do"] == "text":
            mlflow.log_text(run, event["text"], event["file"])
        elif event["do"] == "data":
            mlflow.log_inputs(run, datasets=[dataset(event["workload"], event["fingerprint"])])
        elif event["do"] == "end":
            mlflow.set_terminated(run, event["status"], at)

    def _open(self, mlflow: MlflowClient, event: Event) -> None:
        """Open the run, unless an earlier try has; a call that the way to the server has doubled gives one run."""
        self._experiment = experiment_id(mlflow, self._site, self.spool.first["experiment"])
        found = self._opened(mlflow, event["run"])
        if not found:
            tags = event["tags"] | {EVENT_TAG: event["run"]}
            if "parent" in event:
                tags["mlflow.parentRunId"] = self._run(mlflow, event["parent"])
            mlflow.create_run(self._experiment, start_time=event["at"], tags=tags, run_name=event["name"])
            found = self._opened(mlflow, event["run"])
        for extra in found[1:]:
            mlflow.delete_run(extra)
        self.runs[event["run"]] = found[0]

    def _run(self, mlflow: MlflowClient, run: str) -> str:
        """MLflow's id of an open run."""
        if run not in self.runs:
            self._experiment = experiment_id(mlflow, self._site, self.spool.first["experiment"])
            found = self._opened(mlflow, run)
            if not found:
                from mlflow.exceptions import MlflowException
                from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

                raise MlflowException("somebody deleted the run", RESOURCE_DOES_NOT_EXIST)
            self.runs[run] = found[0]
        return self.runs[run]

    def _opened(self, mlflow: MlflowClient, run: str) -> list[str]:
        found = mlflow.search_runs([str(self._experiment)], f"tags.`{EVENT_TAG}` = '{run}'")
        return sorted(one.info.run_id for one in found)


def _joined(events: Iterable[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """Join the points of one run that follow each other, such as the epochs of a stage: one call takes them all."""
    group, number, end = list[Event](), 0, 0
    for event, after in events:
        number += len(_points(event))
        fits = group and {*event, *group[0]} == {"do", "run", "at", "points"} and event["run"] == group[0]["run"]
        if group and not (fits and number <= _MOST_POINTS):
            yield group, end
            group, number = [], len(_points(event))
        group.append(event)
        end = after
    if group:
        yield group, end


def _points(event: Event) -> Sequence[tuple[str, float, int]]:
    """Points of curves: name, value and step."""
    return event.get("points", ())


def upload_left(site: Site, alive: Callable[[str], bool]) -> list[str]:
    """Upload what runs that ended, or whose process died, could not upload. Without such runs it imports no MLflow.

    Args:
        site: the home, and where its MLflow is. Events for another MLflow stay.
        alive: says whether the process of a `kdq.owner` tag lives.

    Returns:
        A line for each run.
    """
    lines: list[str] = []
    for spool in left(site, alive):
        lock = try_held(spool.lock) if spool.first.get("place") == place_of(site) else None
        if lock is None:
            continue  # it is for another MLflow; or its own process, or another command, uploads it
        with lock:
            name, number = spool.folder.name, spool.waiting()
            try:
                if spool.file.exists():  # another command may have been faster
                    spool.close()
                refused: list[str] = []
                Upload(site, spool).send_locked(refused.append)
            except KdqError as error:
                lines.append(f"{number} events of run {name!r} still wait for MLflow: {error}")
                if isinstance(error, TransientError):
                    break
                continue
            lines += [f"MLflow did not take an event of run {name!r}: {text}" for text in dict.fromkeys(refused)]
            if number:
                lines.append(f"{number} events of run {name!r} that had waited are in MLflow now")
            spool.remove()
    return lines


def _of_the_event(error: BaseException | None) -> bool:
    """Whether MLflow refused what the event says, so that another try gives the same answer."""
    from mlflow.exceptions import MlflowException

    while error is not None:
        if isinstance(error, MlflowException):
            status = error.get_http_status_code()
            return 400 <= status < 500 and status not in (401, 403, 408, 429)
        error = error.__cause__
    return False
