"""Start AIBrix's metadata service in front of one endpoint.

Its own command line has none: there, a job brings a runtime, or everything is echoed. The
application takes one as an argument.

    python aibrix_launch.py PORT ENDPOINT
"""

import sys

import uvicorn
from aibrix.batch import BatchDriver
from aibrix.batch.client import GatewayEndpointSource
from aibrix.metadata import app

port, endpoint = int(sys.argv[1]), sys.argv[2]
app.BatchDriver = lambda **given: BatchDriver(
    **given | {"endpoint_source": GatewayEndpointSource(endpoint)}
)
app.logging_basic_config(app.settings)
uvicorn.run(app.build_app(app.build_app_args()), host="127.0.0.1", port=port)
