"""The flow of one node: a worker of the node pool runs it, on any machine that sees the same store."""

import json
import uuid
from typing import Any

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.states import Completed, Failed, State

from kdq_flows.prefect.pools import site_here
from kdq_flows.prefect.reconcile import claim
from kdq_flows.run.node import NodeAnswer, run_node
from kdq_flows.run.signals import leaving

ANSWER = "kdq-answer"
"""Type of the artifact that holds a node's answer."""
MODULE_PATH = "kdq_flows.prefect.node_flow:node_flow"


@flow(name="kdq-node", validate_parameters=False, persist_result=False)
def node_flow(request: dict[str, Any]) -> State:
    """Run a node, and leave its answer as an artifact of the flow run.

    Args:
        request: a `kdq_flows.run.node.NodeRequest` as plain data.
    """
    run = uuid.UUID(str(runtime.flow_run.id))
    claim(run)
    with leaving():
        answer = run_node(request | {"site": site_here().model_dump(mode="json")})
    with get_client(sync_client=True) as client:
        client.create_artifact(ArtifactCreate(type=ANSWER, data=json.dumps(answer), flow_run_id=run))
    read = NodeAnswer.model_validate(answer)
    if read.error is not None:
        return Failed(message=read.error.message)
    return Completed(message=f"{read.state}: key {read.key[:12]}")
