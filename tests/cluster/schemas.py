"""Checks manifests against the schemas of their formats, run by the environment that has these.

Takes a JSON list of documents of Kubernetes on standard input, and fails at the first that is not
one. Ray's own resource has no packaged schema: of `RayCluster` the pod templates are checked as
those of Kubernetes, and the fields around them against the ones that its operator reads.
Source: the Go types of KubeRay, `ray.io/v1`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema
import kubernetes_validate

# The oldest that has all that is used (`preStop.sleep`), and the newest that there is a schema of.
VERSIONS = ("1.30", kubernetes_validate.latest_version())

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}


def _fields(required: list[str], **known: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": known,
        "required": required,
        "additionalProperties": False,
    }


_TEMPLATE = {"type": "object"}
_WORKERS = _fields(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string"},
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    rayStartParams=_TEXTS,
    template=_TEMPLATE,
)
RAY_CLUSTER = _fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata={"type": "object"},
    spec=_fields(
        ["headGroupSpec"],
        rayVersion={"type": "string"},
        enableInTreeAutoscaling={"type": "boolean"},
        autoscalerOptions=_fields(
            [],
            idleTimeoutSeconds=_COUNT,
            env={"type": "array", "items": {"type": "object", "required": ["name"]}},
            upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        ),
        suspend={"type": "boolean"},
        headGroupSpec=_fields(
            ["rayStartParams", "template"],
            serviceType={"type": "string"},
            rayStartParams=_TEXTS,
            template=_TEMPLATE,
        ),
        workerGroupSpecs={"type": "array", "items": _WORKERS},
    ),
)


def check(document: dict[str, Any]) -> None:
    """Check one document.

    Raises:
        Exception: it is not of the format; the text says where.
    """
    if document.get("kind") != "RayCluster":
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
        return
    jsonschema.validate(document, RAY_CLUSTER)
    spec = document["spec"]
    for number, group in enumerate([spec["headGroupSpec"], *spec["workerGroupSpecs"]]):
        pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": f"g{number}"}}
        check(pods | {"template": group["template"]})


if __name__ == "__main__":
    for each in json.load(sys.stdin):
        check(each)
