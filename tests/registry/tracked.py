"""What a tracker wrote, in MLflow."""

import pytest

from kdq_core.recipe.spec import Site
from kdq_registry.environment import client
from kdq_registry.tracking import Tracker
from kdq_registry.uploading import Upload


def run_id(site: Site, tracker: Tracker, run: str = "") -> str:
    """Upload all events; gives MLflow's id of a run, by default that of the pipeline."""
    upload = Upload(site, tracker.spool)
    upload.send(pytest.fail)
    return upload._run(client(site), run or tracker.run)
