"""A Ray cluster as its clients see it, which cannot serve the first ones; run where Ray is.

    python refusing.py NUMBER

Speaks the protocol of `ray://`. Takes that many clients as Ray's proxy does when the process that
it starts for each of them dies, and the next one well. Says its port; after that, a line for each
client.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import ray
from ray.core.generated import ray_client_pb2 as messages
from ray.core.generated import ray_client_pb2_grpc as services

if TYPE_CHECKING:
    from collections.abc import Iterator

WHY = "Traceback (most recent call last):\n  File ...\nRuntimeError: Starting failed. See some.err"


class Driver(services.RayletDriverServicer):  # type: ignore[misc]
    def ClusterInfo(self, request: Any, context: Any) -> Any:  # noqa: N802 - theirs
        kinds = messages.ClusterInfoType
        found = {"dashboard_url": ""} if request.type == kinds.DASHBOARD_URL else True
        return messages.ClusterInfoResponse(type=request.type, json=json.dumps(found))

    def KVPut(self, request: Any, context: Any) -> Any:  # noqa: N802 - theirs
        return messages.KVPutResponse(already_exists=True)


class Data(services.RayletDataStreamerServicer):  # type: ignore[misc]
    def __init__(self, number: int) -> None:
        self._left = number

    def Datapath(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            answer = messages.DataResponse(req_id=request.req_id)
            if request.WhichOneof("type") == "init":
                is_refused, self._left = self._left > 0, self._left - 1
                print("refused" if is_refused else "taken", flush=True)
                answer.init.CopyFrom(messages.InitResponse(ok=not is_refused, msg=WHY))
                yield answer
                if is_refused:
                    for _ in requests:  # the proxy lets go later than the client
                        pass
            elif request.WhichOneof("type") == "connection_info":
                info = answer.connection_info
                info.num_clients, info.ray_version = 1, ray.__version__
                info.ray_commit = ray.__commit__
                info.python_version = ".".join(map(str, sys.version_info[:3]))
                yield answer


class Logs(services.RayletLogStreamerServicer):  # type: ignore[misc]
    def Logstream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        for _ in requests:
            pass
        yield from ()


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(16))
    services.add_RayletDriverServicer_to_server(Driver(), server)
    services.add_RayletDataStreamerServicer_to_server(Data(int(sys.argv[1])), server)
    services.add_RayletLogStreamerServicer_to_server(Logs(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


if __name__ == "__main__":
    main()
