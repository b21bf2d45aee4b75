"""The command line of a later version, whose tables have changed again.

    python newer_serve.py <version> '{"limits:LEASE_US": 2000000}' serve …

Each version after ours adds a column, and takes away an index that only the version before needed:
all that the tests of two versions side by side need of a version that does not exist yet.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from batchyard.ledger import postgres_schema

VERSION = int(sys.argv.pop(1))

for made in range(postgres_schema.SCHEMA_VERSION, VERSION):
    add = f"ALTER TABLE shards ADD COLUMN added_{made} INTEGER NOT NULL DEFAULT 0"
    index = f"CREATE INDEX only_for_{made} ON shards (added_{made})"
    postgres_schema._STEPS[made] = postgres_schema.Step(
        before=(add.encode(), index.encode()), after=(f"DROP INDEX only_for_{made}".encode(),)
    )
postgres_schema.SCHEMA_VERSION = VERSION
runpy.run_path(str(Path(__file__).parents[1] / "helpers_serve.py"), run_name="__main__")
