"""Other bounds for every process that has this directory in `PYTHONPATH`.

Python imports this module at its start. `BATCHYARD_TEST_BOUNDS` is a JSON object of `module:NAME`
and value, as for `helpers_serve.py`, which reaches one process only.
"""

from __future__ import annotations

import importlib
import json
import os

for name, value in json.loads(os.environ.get("BATCHYARD_TEST_BOUNDS", "{}")).items():
    module_name, _, constant = name.partition(":")
    module = importlib.import_module(f"batchyard.{module_name}")
    assert hasattr(module, constant), name
    setattr(module, constant, value)
