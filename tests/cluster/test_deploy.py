"""The manifests under deploy/: of the right format, and in agreement with what they start."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
import yaml

from batchyard import limits
from batchyard.cli import cluster, serve
from batchyard.server import config, run
from batchyard.testing import Emulator
from helpers_cluster import PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
MANIFESTS = sorted([*DEPLOY.glob("kubernetes/*.yaml"), *DEPLOY.glob("kuberay/*.yaml")])
GATEWAY = (DEPLOY / "gateway.conf.template").read_text(encoding="utf-8")
DOCUMENTED = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def documents() -> list[dict[str, Any]]:
    """Return every document of every manifest of Kubernetes."""
    texts = [path.read_text(encoding="utf-8") for path in MANIFESTS]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in documents() if document["kind"] == kind]


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in of_kind(kind) if each["metadata"]["name"] == name]
    return found


def pods() -> Iterator[dict[str, Any]]:
    """Yield the specification of every pod."""
    for deployment in of_kind("Deployment"):
        yield deployment["spec"]["template"]["spec"]
    for cluster_ in of_kind("RayCluster"):
        spec = cluster_["spec"]
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            yield group["template"]["spec"]


def commands() -> dict[str, list[str]]:
    """Return the arguments of the program, by where it is started."""
    found = {
        f"compose {name}": service["command"]
        for name, service in COMPOSE["services"].items()
        if service["image"] == "batchyard" and "entrypoint" not in service
    }
    for pod in pods():
        for container in pod["containers"]:
            if container["image"].startswith("batchyard") and "args" in container:
                found[f"kubernetes {container['name']}"] = container["args"]
    return found


def schemas(given: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("schemas.py")
    return subprocess.run(
        [str(PYTHON), str(script)],
        input=json.dumps(given), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_every_document_of_kubernetes_is_of_its_format() -> None:
    assert len(documents()) >= 9
    done = schemas(documents())
    assert done.returncode == 0, done.stderr[-3_000:]


@pytest.mark.parametrize(
    ("kind", "where", "key"),
    [
        ("Deployment", ("spec", "template", "spec"), "terminationGracePeriodSecond"),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec"), "container"),
        ("RayCluster", ("spec",), "workerGroupSpec"),
    ],
)
def test_a_field_that_there_is_not_would_be_found(
    kind: str, where: tuple[str, ...], key: str
) -> None:
    document = of_kind(kind)[0]
    at = document
    for name in where:
        at = at[name]
    at[key] = 1
    assert key in schemas([document]).stderr


def test_the_compose_file_is_of_its_format() -> None:
    program = PYTHON.with_name("check-jsonschema")
    done = subprocess.run(
        [str(program), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_every_command_that_is_started_has_the_options_that_it_is_given() -> None:
    served = typer.Typer(add_completion=False)
    served.command("serve")(serve.serve)
    known = {
        ("serve",): typer.main.get_command(served),
        ("cluster", "up"): typer.main.get_command(cluster.app).commands["up"],  # type: ignore[attr-defined]
    }
    seen = set()
    for where, arguments in commands().items():
        words = tuple(word for word in arguments[:2] if not word.startswith("-"))
        seen.add(words)
        command = known[words]
        context = command.make_context("x", list(arguments[len(words) :]), resilient_parsing=False)
        given = [word for word in arguments if word.startswith("--")]
        assert given, where
        assert context.params, where
    assert seen == set(known)


def test_every_variable_is_one_that_the_program_reads() -> None:
    names = set(named("Secret", "batchyard")["stringData"])
    for pod in pods():
        for container in pod["containers"]:
            names |= {each["name"] for each in container.get("env", [])}
    for service in COMPOSE["services"].values():
        names |= set(service.get("environment", {}))
    ours = {name for name in names if name.startswith("BATCHYARD_")}
    assert len(ours) >= 4
    for name in ours:
        assert f"`{name}`" in DOCUMENTED, name


def test_the_settings_of_kubernetes_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "batchyard.toml"
    file.write_text(named("ConfigMap", "batchyard")["data"]["batchyard.toml"])
    for role in ("api", "worker"):
        environment = named("Secret", "batchyard")["stringData"]
        loaded = config.load(file=file, environment=environment, role=role)
        assert loaded.ledger is not None
        assert loaded.segments is not None


def test_the_variables_that_a_service_of_our_name_sets_are_no_settings(tmp_path: Path) -> None:
    """Kubernetes sets them in the pods that come after the Service, unless a pod wants none."""
    assert named("Service", "batchyard")
    links = {
        "BATCHYARD_SERVICE_HOST": "10.96.12.7",
        "BATCHYARD_SERVICE_PORT": "80",
        "BATCHYARD_SERVICE_PORT_HTTP": "80",
        "BATCHYARD_PORT": "tcp://10.96.12.7:80",
        "BATCHYARD_PORT_80_TCP": "tcp://10.96.12.7:80",
        "BATCHYARD_PORT_80_TCP_ADDR": "10.96.12.7",
        "BATCHYARD_PORT_80_TCP_PORT": "80",
        "BATCHYARD_PORT_80_TCP_PROTO": "tcp",
    }
    file = tmp_path / "batchyard.toml"
    file.write_text(named("ConfigMap", "batchyard")["data"]["batchyard.toml"])
    environment = named("Secret", "batchyard")["stringData"]
    for role in ("api", "worker"):
        alone = config.load(file=file, environment=environment, role=role)
        assert config.load(file=file, environment=environment | links, role=role) == alone


def test_no_pod_wants_variables_of_services() -> None:
    assert [pod["enableServiceLinks"] for pod in pods()] == [False] * 5


def test_the_settings_of_the_trial_are_settings() -> None:
    for name, role in (("api", "api"), ("worker", "worker")):
        environment = COMPOSE["services"][name]["environment"]
        loaded = config.load(file=None, environment=environment, role=role)
        assert [each.is_simulated for each in loaded.upstreams] == [True]


def test_whoever_works_has_the_time_to_let_its_calls_end() -> None:
    for deployment in of_kind("Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        before = (each.get("lifecycle", {}) for each in pod["containers"] if "args" in each)
        before_s = max((each["preStop"]["sleep"]["seconds"] for each in before if each), default=0)
        grace_s = pod["terminationGracePeriodSeconds"]
        assert grace_s > run._LEAVE_MAX_S + before_s, deployment["metadata"]
    for name in ("api", "worker"):
        assert COMPOSE["services"][name]["stop_grace_period"] == "100s"
    assert run._LEAVE_MAX_S < 100


def test_the_gateway_of_a_pod_goes_before_the_api_that_it_stands_before() -> None:
    """Whoever keeps a connection to it would get nothing but 502 else, until it goes, too."""
    (pod,) = [pod for pod in pods() if "gateway" in [each["name"] for each in pod["containers"]]]
    waits_s = {
        each["name"]: each["lifecycle"]["preStop"]["sleep"]["seconds"] for each in pod["containers"]
    }
    assert 0 < waits_s["gateway"] < waits_s["api"]


def test_answers_under_way_at_the_end_may_take_as_long_as_the_calls_that_they_wait_for() -> None:
    assert run.CLOSE_S == limits.DRAIN_GRACE_S
    assert run._LEAVE_MAX_S > run.CLOSE_S


def test_the_gateway_stands_before_the_api_and_lets_its_bodies_through() -> None:
    (template,) = named("ConfigMap", "batchyard-gateway")["data"].values()
    assert template == GATEWAY, "the copy in the manifest is old"
    api = next(v for k, v in commands().items() if k == "kubernetes api")
    port = api[api.index("--port") + 1]
    assert set(re.findall(r"proxy_pass http://(\S+);", GATEWAY)) == {f"127.0.0.1:{port}"}
    assert commands()["compose api"][4] == port
    (size,) = re.findall(r"client_max_body_size (\d+)m;", GATEWAY)
    assert int(size) * limits.MIB > limits.BATCH_BODY_BYTES_MAX
    (listens,) = re.findall(r"listen (\d+);", GATEWAY)
    (gateway,) = [c for p in pods() for c in p["containers"] if c["name"] == "gateway"]
    assert gateway["ports"] == [{"name": "http", "containerPort": int(listens)}]
    assert COMPOSE["services"]["gateway"]["ports"] == [f"127.0.0.1:{listens}:{listens}"]
    assert COMPOSE["services"]["api"]["network_mode"] == "service:gateway"


def test_the_gateway_starts_with_every_key_that_the_page_allows() -> None:
    """A value of a map fits into a bucket with two pointers and its own length, rounded up."""
    (bucket,) = map(int, re.findall(r"^map_hash_bucket_size (\d+);", GATEWAY, re.MULTILINE))
    page = (ROOT / "docs" / "howto" / "kubernetes.md").read_text(encoding="utf-8")
    (longest,) = map(int, re.findall(r"of up to (\d+) characters", page))
    assert len("Bearer ") + longest <= bucket - 2 * 8 - 2 - 7
    (made,) = set(map(int, re.findall(r"openssl rand -hex (\d+)", page)))
    assert 2 * made <= longest


def test_what_the_probes_ask_for_is_answered_without_a_key() -> None:
    paths = set(re.findall(r"location = (\S+) ", GATEWAY))
    probed = {
        probe["httpGet"]["path"]
        for pod in pods()
        for container in pod["containers"]
        for name, probe in container.items()
        if name.endswith("Probe") and "httpGet" in probe
    }
    assert probed == paths
    with Emulator() as emulator:
        host, _, port = emulator.url.removeprefix("http://").partition(":")
        for path in probed:
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            # As the gateway names it, whatever its own name is.
            connection.request("GET", path, headers={"host": "127.0.0.1:8787"})
            assert connection.getresponse().status == 200, path
            connection.close()


def test_the_image_has_what_many_machines_need() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)
    assert set(extras.split(",")) == {"postgres", "objects"}
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
        assert f"!{name}\n" in (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    ray = (ROOT / "requirements" / "ray.lock").read_text(encoding="utf-8")
    (locked,) = re.findall(r"^ray==(\S+)", ray, re.MULTILINE)
    assert f"rayproject/ray:{locked}-" in text, "the image of the nodes has another Ray"
    (spec,) = [each["spec"] for each in of_kind("RayCluster")]
    assert spec["rayVersion"] == locked
