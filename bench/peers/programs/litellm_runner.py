"""Drive LiteLLM's own executor of batches, with stores in memory.

Its stores need a database engine that is not on PyPI; the class takes others. Run by `litellm.py`:
it prints a line when it is ready, then does the work of each line that it reads. A file `cancel`
beside the results asks it to cancel; it removes it then.

    python litellm_runner.py BASE_URL [CONCURRENCY]
"""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.batches_endpoints.litellm_executed_batches import (
    TERMINAL_BATCH_STATUSES,
    LiteLLMExecutedBatchRunner,
)


class Stores:
    """What the runner keeps elsewhere: files, and the state of a batch."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, object] = {}

    def get_unified_batch_id(self, batch_id: str, model_id: str) -> str:
        return batch_id

    async def get_unified_file_id(self, file_id: str, litellm_parent_otel_span: object = None):
        return SimpleNamespace(storage_backend="memory", storage_url=file_id)

    async def store_unified_object_id(self, unified_object_id: str, file_object, **_) -> None:
        self.batches[unified_object_id] = file_object

    async def load_batch(self, batch_id: str):
        return self.batches.get(batch_id)

    async def load_status(self, batch_id: str) -> str:
        return self.batches[batch_id].status

    async def compare_and_set(self, batch, unchanged, user_id) -> bool:
        if self.batches[batch.id].status != unchanged["status"]:
            return False
        self.batches[batch.id] = batch
        return True

    async def touch(self, batch_id: str, user_id) -> None:
        pass

    async def download_file(self, address: str) -> bytes:
        return self.files[address]

    async def upload(self, file_data, **_):
        self.files[file_data["filename"]] = file_data["content"]
        return SimpleNamespace(id=file_data["filename"])


async def work(source: Path, target: Path, base_url: str, settings: dict) -> None:
    deployment = {"model": "hosted_vllm/bench", "api_base": base_url, "api_key": "any"}
    stores = Stores()
    stores.files["requests"] = source.read_bytes()
    runner = LiteLLMExecutedBatchRunner(
        llm_router=Router(model_list=[{"model_name": "bench", "litellm_params": deployment}]),
        prisma_client=None,
        managed_files=stores,
        batches=stores,
        proxy_logging_obj=None,
        general_settings={},
        storage_backend_factory=lambda *_, **__: stores,
        upload_result_file=stores.upload,
        **settings,
    )
    sign = target.with_name("cancel")
    user = UserAPIKeyAuth(api_key="any")
    batch = await runner.create(
        create_request={"endpoint": "/v1/chat/completions", "completion_window": "24h"},
        unified_input_file_id="requests",
        model="bench",
        provider="hosted_vllm",
        user_api_key_dict=user,
        request_tags=None,
    )
    while (shown := await stores.load_batch(batch.id)).status not in TERMINAL_BATCH_STATUSES:
        if shown.status == "in_progress" and sign.exists():
            await runner.cancel(batch.id, user)
            sign.unlink()
        await asyncio.sleep(0.01)
    if shown.status not in {"completed", "cancelled"}:
        raise SystemExit(f"{shown.status}: {shown.errors}")
    files = filter(None, [shown.output_file_id, shown.error_file_id])
    target.write_bytes(b"\n".join(stores.files[file] for file in files))


def main() -> None:
    settings = {"concurrency": int(sys.argv[2])} if len(sys.argv) > 2 else {}
    print("ready", flush=True)
    for line in sys.stdin:
        source, target = line.split()
        asyncio.run(work(Path(source), Path(target), sys.argv[1], settings))
        print("done", flush=True)


main()
