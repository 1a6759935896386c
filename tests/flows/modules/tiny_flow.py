"""A flow that a worker's child can import: it leaves a line behind."""

import os
from pathlib import Path
from typing import Any

from prefect import flow


@flow(name="tiny", validate_parameters=False)
def tiny_flow(recipe: dict[str, Any], allowed_lag_seconds: float | None, missed: str, overlap: str) -> None:
    with (Path(os.environ["KDQ_HOME"]) / "fired.txt").open("a") as file:
        file.write(f"{recipe['name']} {allowed_lag_seconds} {os.getpid()} {missed} {overlap}\n")
