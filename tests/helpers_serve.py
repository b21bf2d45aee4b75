"""The command line with other bounds.

    python helpers_serve.py '{"limits:ATTEMPTS_MAX": 2}' serve …

So that a test of a real process need not wait for real delays or send real sizes.
"""

from __future__ import annotations

import importlib
import json
import sys

for name, value in json.loads(sys.argv.pop(1)).items():
    module_name, _, constant = name.partition(":")
    module = importlib.import_module(f"batchyard.{module_name}")
    assert hasattr(module, constant), name
    setattr(module, constant, value)

from batchyard.cli.main import main  # noqa: E402 - after the bounds

main()
