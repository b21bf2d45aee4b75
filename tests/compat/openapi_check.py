"""Hold recorded answers against a description; say what each is, and why it does not fit, as JSON.

    PYTHON openapi_check.py < {"description": {…}, "answers": [{…}, …]}

Run by the interpreter that has schemathesis, with the checks of its own run. An answer is `method`,
`path`, `status`, `headers` (pairs) and `body` (text).
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any
from urllib.parse import urlsplit

import openapi_hooks
import requests
import schemathesis
import schemathesis.openapi
from schemathesis.core.transport import Response
from schemathesis.specs.openapi import checks

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    openapi_hooks.one_request_id,
]
# Of HTTP itself: true of any answer, and described nowhere.
FRAMING = {"date", "content-type", "content-length", "transfer-encoding", "connection"}


def find(paths: dict[str, Any], path: str) -> tuple[str, dict[str, str]]:
    """Return the template of a path and its variables; one without variables wins."""
    for template in sorted(paths, key=lambda template: template.count("{")):
        match = re.fullmatch(re.sub(r"\{([^}]+)\}", r"(?P<\1>[^/]+)", template), path)
        if match:
            return template, match.groupdict()
    raise LookupError(path)


def problem(
    schema: Any, paths: dict[str, Any], template: str, variables: dict[str, str], answer: Any
) -> str | None:
    """Return why an answer does not fit."""
    headers: dict[str, list[str]] = {}
    for name, value in answer["headers"]:
        headers.setdefault(name.lower(), []).append(value)
    request = requests.Request(answer["method"], f"http://yard{answer['path']}").prepare()
    body = answer["body"].encode()
    response = Response(answer["status"], headers, body, request, elapsed=0.1, verify=False)
    # A method that the path has not is described as 405 by each that it has.
    methods = [name for name in paths[template] if name != "parameters"]
    method = answer["method"].lower()
    operation = schema[template][method if method in methods else methods[0]]
    found = operation.responses.find_by_status_code(answer["status"])
    if found is None:
        return "no such status is described"
    known = {name.lower() for name, _ in found.headers.items()}
    if not set(headers) <= known | FRAMING:
        return f"headers that are not described: {sorted(set(headers) - known - FRAMING)}"
    try:
        operation.Case(path_parameters=variables).validate_response(response, checks=CHECKS)
    except schemathesis.errors.SchemathesisError as error:
        return str(error)
    except BaseExceptionGroup as errors:
        return "; ".join(str(error) for error in errors.exceptions)
    return None


def main() -> None:
    asked = json.load(sys.stdin)
    paths = asked["description"]["paths"]
    schema = schemathesis.openapi.from_dict(asked["description"])
    schema.validate()  # that it is OpenAPI 3.1 at all
    found = []
    for answer in asked["answers"]:
        template, variables = find(paths, urlsplit(answer["path"]).path)
        label = f"{answer['method']} {template} {answer['status']}"
        found.append([label, problem(schema, paths, template, variables, answer)])
    json.dump(found, sys.stdout)


main()
