"""A report for each README below a folder, with the library: `python reports.py FOLDER OUT`.

Uses the hosted API when ANTHROPIC_API_KEY is set, else a local server with a simulated model.
Stop it whenever you like; the same command continues.
"""

import os
import sys
from pathlib import Path

from batchyard import Run, files
from batchyard.price import dollars

PROMPT = Path(__file__).with_name("report.md.j2")


def main(folder: str, out: str) -> None:
    with Run(
        out,
        docs=files(folder),
        prompt=PROMPT,
        model="claude-opus-4-8",
        max_tokens=2_000,
        local="ANTHROPIC_API_KEY" not in os.environ,
    ) as run:
        plan = run.plan()
        print(f"{plan.documents} documents in {len(plan.shards)} batches")
        run.submit(plan)
        for doc in run:
            print(doc.status, doc.path or doc.reason)
        receipt = run.report()
    price = "unknown" if receipt.paid_micros is None else dollars(receipt.paid_micros)
    print(f"{receipt.saved} saved, {receipt.basis}, {price} paid")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
