"""The script that people write after a tutorial: submit, wait, collect, save. Nothing of batchyard.

    python reports_script.py BASE_URL ANTHROPIC_BETA

Written as they write it, with its weak points: it takes the first block for the text, keeps all
results in memory, and resubmits whatever failed. It works in the current folder.
"""

# ruff: noqa: PTH103, PTH123, PTH118

import json
import os
import sys
import time

import anthropic

client = anthropic.Anthropic(
    api_key="any",
    base_url=sys.argv[1],
    default_headers={"anthropic-beta": sys.argv[2]} if sys.argv[2] else None,
)


def build_batch_requests(projects: list[dict]) -> list[dict]:
    requests = []
    for project in projects:
        content = (
            "Analyse this open source project and write a structured report.\n"
            f"Project: {project['name']}\nREADME:\n{project['readme']}\n"
            "Write these sections: ## Overview, ## Technology, ## Uses, ## Risks, ## Rating"
        )
        requests.append(
            {
                "custom_id": project["id"],
                "params": {
                    "model": "claude-opus-4-6",
                    "max_tokens": 300000,
                    "messages": [{"role": "user", "content": content}],
                },
            }
        )
    return requests


def submit_batch(projects: list[dict]) -> str:
    requests = build_batch_requests(projects)
    batch = client.messages.batches.create(requests=requests)
    print(
        f"batch {batch.id}: {batch.processing_status}, {batch.request_counts.processing} requests"
    )
    return batch.id


def wait_for_batch(batch_id: str, poll_interval: float) -> None:
    while True:
        batch = client.messages.batches.retrieve(batch_id)
        counts = batch.request_counts
        print(f"{batch.processing_status}: {counts.succeeded} succeeded, {counts.errored} errored")
        if batch.processing_status == "ended":
            break
        time.sleep(poll_interval)


def collect_results(batch_id: str) -> dict[str, str]:
    results = {}
    errors = []
    for result in client.messages.batches.results(batch_id):
        if result.result.type == "succeeded":
            results[result.custom_id] = result.result.message.content[0].text
        elif result.result.type == "errored":
            message = result.result.error.error.message
            errors.append({"id": result.custom_id, "error": message})
    if errors:
        with open("batch_errors.json", "w", encoding="utf-8") as file:
            json.dump(errors, file, ensure_ascii=False, indent=2)
    return results


def save_reports(results: dict[str, str], output_dir: str = "reports") -> None:
    os.makedirs(output_dir, exist_ok=True)
    for custom_id, content in results.items():
        with open(os.path.join(output_dir, f"{custom_id}.md"), "w", encoding="utf-8") as file:
            file.write(content)


def main() -> None:
    projects = [
        {
            "id": f"proj_{number:03d}",
            "name": f"example {number}",
            "readme": f"This is the README of project {number}. " * 100,
        }
        for number in range(1, 501)
    ]
    batch_id = submit_batch(projects)
    with open("batch_id.txt", "w") as file:
        file.write(batch_id)
    wait_for_batch(batch_id, poll_interval=0.2)
    save_reports(collect_results(batch_id))


if __name__ == "__main__":
    main()
