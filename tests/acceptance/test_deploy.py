"""deploy/: each file under a linter that others wrote, offline; and a real relay that tells a service manager how it is."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hlsrelay.commands import LONGEST_SERVED_ON_S
from hlsrelay.handover import OFFERED_FOR_S
from hlsrelay.metrics import Metrics
from hlsrelay.parcel import RESOURCE
from hlsrelay.settings import Settings, load_settings
from tests.acceptance.live_source import muxing, nginx
from tests.acceptance.relay_process import environment, hlsrelay, redis_server, relaying
from tests.needs import needs
from tests.waiting import until

pytestmark = pytest.mark.acceptance

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "hlsrelay@.service"
EDGE = DEPLOY / "nginx-edge.conf"
WANTED = "hlsrelay_load_wanted"
WORKER = DEPLOY / "hlsrelay-worker@.service"
OURS = str(Path(sys.executable).parent)
MOST_EXPOSED = 30
"""Tenths, of 100, by `systemd-analyze security`: what it calls OK ends at 50."""


def linted(program: str, *words: str) -> None:
    """Run a linter that came with the tests' packages, or is on PATH; skips where there is none."""
    found = shutil.which(program, path=f"{OURS}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"not on this machine: {program}")
    done = subprocess.run([found, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(params=[UNIT, WORKER], ids=["run", "worker"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A unit as it would be of an instance `news`, on a machine where hlsrelay is at another place."""
    path = tmp_path / request.param.name.replace("@", "@news")
    path.write_text(request.param.read_text().replace("/opt/hlsrelay/.venv/bin/hlsrelay", sys.executable))
    return str(path)


@needs("systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(unit: str) -> None:
    linted("systemd-analyze", "verify", "--man=no", unit)


@needs("systemd-analyze")
def test_the_unit_is_shut_in_well_by_systemds_own_measure(unit: str) -> None:
    linted("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={MOST_EXPOSED}", unit)


def service_of(unit: Path) -> dict[str, str]:
    """Return what a unit's section Service says; of what it says twice the last."""
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read(unit)
    return dict(parsed["Service"])


def test_a_worker_is_limited_as_a_relay_is_and_has_the_time_to_hand_its_streams_on() -> None:
    relay, worker = service_of(UNIT), service_of(WORKER)
    differ = {name for name in relay.keys() | worker.keys() if relay.get(name) != worker.get(name)}
    named = {"EnvironmentFile", "Environment", "ExecStart", "Restart", "RestartPreventExitStatus"}
    assert differ == named | {"TimeoutStopSec", "MemoryHigh", "MemoryMax", "TasksMax"}
    assert worker["ExecStart"].endswith("/hlsrelay worker")
    assert int(worker["TimeoutStopSec"]) >= LEAVES_WITHIN_S


LEAVES_WITHIN_S = OFFERED_FOR_S + LONGEST_SERVED_ON_S + int(service_of(UNIT)["TimeoutStopSec"])
"""A worker that is told to go hands on, serves on, and ends its children."""


def test_the_unit_ends_starts_and_limits_the_relay_as_the_relay_expects() -> None:
    service = service_of(UNIT)
    wanted = {
        "Type": "notify",
        "KillMode": "mixed",
        "Restart": "on-failure",
        "RestartPreventExitStatus": "2 3",
        "OOMPolicy": "continue",
        "StateDirectory": "hlsrelay",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
    }
    assert {name: service.get(name) for name in wanted} == wanted
    assert {"WatchdogSec", "TimeoutStopSec", "MemoryMax", "TasksMax"} <= service.keys()
    assert service["ExecStart"].endswith("/hlsrelay run %i")


def test_hadolint_finds_no_fault_with_the_dockerfile() -> None:
    linted("hadolint", "--no-color", str(DEPLOY / "Dockerfile"))


def test_the_compose_files_keep_to_the_schema_of_compose() -> None:
    files = sorted(map(str, DEPLOY.glob("compose*.yaml")))
    assert len(files) == 3
    linted("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files)


def test_compose_gives_workers_the_time_to_hand_their_streams_on_and_warms_the_edge() -> None:
    made = yaml.safe_load((DEPLOY / "compose.cluster.yaml").read_text())["services"]
    workers = {name: one for name, one in made.items() if one.get("command") == ["worker"]}
    assert len(workers) == 2
    for name, one in workers.items():
        assert int(one["stop_grace_period"].removesuffix("s")) >= LEAVES_WITHIN_S
        assert f"server {name}:8080 " in EDGE.read_text()
        assert one["environment"]["HLSRELAY_PRELOAD"] == "http://edge:8080/live"
        assert {setting.removeprefix("HLSRELAY_").lower() for setting in one["environment"]} <= Settings.model_fields.keys()
    assert "listen 8080;" in EDGE.read_text()


TEXT, WHOLE = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}


def only(needed: str, more: str = "", **fields: object) -> dict[str, object]:
    """Return the schema of an object of these fields and no others; those *needed* have to be there."""
    assert {*needed.split(), *more.split()} == fields.keys()
    return {"type": "object", "properties": fields, "required": needed.split(), "additionalProperties": False}


SCALED_OBJECT = only(
    "apiVersion kind metadata spec",
    apiVersion={"const": "keda.sh/v1alpha1"},
    kind={"const": "ScaledObject"},
    metadata=only("name", name=TEXT),
    spec=only(
        "scaleTargetRef triggers minReplicaCount maxReplicaCount",
        "cooldownPeriod pollingInterval advanced",
        scaleTargetRef=only("name", name=TEXT),
        minReplicaCount=WHOLE,
        maxReplicaCount=WHOLE,
        cooldownPeriod=WHOLE,
        pollingInterval=WHOLE,
        advanced=only("horizontalPodAutoscalerConfig", horizontalPodAutoscalerConfig=only("behavior", behavior={"type": "object"})),
        triggers={
            "type": "array",
            "minItems": 1,
            "items": only(
                "type metadata",
                type={"const": "prometheus"},
                metadata=only(  # a trigger's metadata are text, numbers too
                    "serverAddress query threshold",
                    "ignoreNullValues",
                    serverAddress={"type": "string", "pattern": "^https?://"},
                    query=TEXT,
                    threshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
                    ignoreNullValues={"enum": ["true", "false"]},
                ),
            ),
        },
    ),
)
"""The part that we use of KEDA's ScaledObject and of its Prometheus scaler (their documentation, 2.17): its own schema needs a cluster."""


def test_the_scaling_keeps_to_kedas_fields(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCALED_OBJECT))
    linted("check-jsonschema", "--schemafile", str(schema), str(DEPLOY / "kubernetes" / "scaling.yaml"))


def autoscaler_of(scaled: dict[str, Any]) -> str:
    """Return the HorizontalPodAutoscaler that KEDA makes of a ScaledObject, as YAML."""
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", **scaled["scaleTargetRef"]},
        "minReplicas": scaled["minReplicaCount"],
        "maxReplicas": scaled["maxReplicaCount"],
        "behavior": scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
    }
    return yaml.safe_dump({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "made"}, "spec": spec})


@needs("kubectl")
def test_kustomize_makes_of_the_folder_what_the_files_say() -> None:
    folder = DEPLOY / "kubernetes"
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    written = {yaml.safe_load((folder / name).read_text())["kind"] for name in listed}
    made = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert made.keys() == written
    assert made["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == "hlsrelay:latest"


def test_the_kubernetes_files_keep_to_its_schemas_and_name_one_another(tmp_path: Path) -> None:
    folder = DEPLOY / "kubernetes"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert {*listed, "kustomization.yaml"} == {path.name for path in folder.iterdir()}
    autoscaler = tmp_path / "autoscaler.yaml"  # in the place of KEDA's, whose schema is not in there
    autoscaler.write_text(autoscaler_of(yaml.safe_load((folder / "scaling.yaml").read_text())["spec"]))
    linted(
        "kubernetes-validate",
        "--strict",
        str(autoscaler),
        *(str(folder / name) for name in listed if name != "scaling.yaml"),
        *(str(DEPLOY / "kubernetes-pool" / name) for name in pool_files()),
    )
    made = {name: yaml.safe_load((folder / name).read_text()) for name in listed}
    labels = made["workers.yaml"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        made["workers.yaml"]["spec"]["selector"]["matchLabels"],
        made["service.yaml"]["spec"]["selector"],
        made["disruption.yaml"]["spec"]["selector"]["matchLabels"],
        made["network.yaml"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    pod = made["workers.yaml"]["spec"]["template"]["spec"]
    [worker] = pod["containers"]
    waits, before_term_s = worker["lifecycle"]["preStop"]["exec"]["command"]
    assert waits == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= int(before_term_s) + LEAVES_WITHIN_S
    assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert worker["livenessProbe"]["httpGet"]["path"] == worker["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert {
        one["name"].removeprefix("HLSRELAY_").lower() for one in worker["env"] if one["name"] != "POD_IP"
    } <= Settings.model_fields.keys()
    scaled = made["scaling.yaml"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == made["workers.yaml"]["metadata"]["name"]
    [trigger] = scaled["spec"]["triggers"]
    assert f"({WANTED})" in trigger["metadata"]["query"]
    assert WANTED in Metrics().text().decode()


def pool_files() -> dict[str, Any]:
    """Return what kubernetes-pool/ lists, by file."""
    folder = DEPLOY / "kubernetes-pool"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert {*listed, "kustomization.yaml"} == {path.name for path in folder.iterdir()}
    return {name: yaml.safe_load((folder / name).read_text()) for name in listed}


def named(pods: Mapping[str, Any]) -> str:
    """Return what a selector, or a pod's labels, name."""
    name: str = pods.get("matchLabels", pods)["app.kubernetes.io/name"]
    return name


def test_the_pools_kubernetes_files_name_one_another_and_the_relays() -> None:
    made = pool_files()
    pods = {name: one["spec"]["template"] for name, one in made.items() if one["kind"] == "Deployment"}
    scheduler, workers = (named(pods[f"{name}.yaml"]["metadata"]["labels"]) for name in ("scheduler", "workers"))
    relays = named(yaml.safe_load((DEPLOY / "kubernetes" / "workers.yaml").read_text())["spec"]["template"]["metadata"]["labels"])
    assert named(made["service.yaml"]["spec"]["selector"]) == scheduler
    target = made["scaling.yaml"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", made["workers.yaml"]["metadata"]["name"])
    assert "replicas" not in made["workers.yaml"]["spec"], "applying it again would undo the scaling"
    [metric] = made["scaling.yaml"]["spec"]["metrics"]
    [worker] = pods["workers.yaml"]["spec"]["containers"]
    assert metric["resource"]["name"] in worker["resources"]["requests"]
    for name, one, ours in (
        ("network-scheduler.yaml", scheduler, {relays, workers}),
        ("network-workers.yaml", workers, {scheduler, workers}),
    ):
        policy = made[name]["spec"]
        assert named(policy["podSelector"]) == one
        assert {named(peer["podSelector"]) for peer in policy["ingress"][0]["from"]} == ours
    [port] = made["service.yaml"]["spec"]["ports"]
    assert worker["args"][0] == f"tcp://{made['service.yaml']['metadata']['name']}:{port['port']}"
    [slots] = [one["valueFrom"] for one in worker["env"] if one["name"] == "SLOTS"]
    assert slots["resourceFieldRef"] == {"resource": "requests.cpu", "divisor": "1"}
    assert {"--nthreads=$(SLOTS)", f"--resources={RESOURCE}=$(SLOTS)"} <= set(worker["args"])


def test_the_compose_pool_has_as_many_threads_as_slots_as_processors_and_a_network_of_its_own() -> None:
    services = yaml.safe_load((DEPLOY / "compose.pool.yaml").read_text())
    worker = services["services"]["pool-worker"]
    words = worker["command"]
    given = {word: words[words.index(word) + 1] for word in ("--nthreads", "--resources")}
    assert given == {"--nthreads": str(worker["cpus"]), "--resources": f"{RESOURCE}={worker['cpus']}"}
    assert services["networks"]["pool"]["internal"]
    assert worker["networks"] == services["services"]["pool-scheduler"]["networks"] == ["pool"]
    for name in ("worker-a", "worker-b"):
        told = services["services"][name]
        assert name in yaml.safe_load((DEPLOY / "compose.cluster.yaml").read_text())["services"]
        assert load_settings(encoder=told["environment"]["HLSRELAY_ENCODER"]).scheduler == words[0]


def test_the_image_has_an_init_a_user_a_health_check_and_installs_from_the_lock_only() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r'(?m)^ENTRYPOINT \["/usr/bin/tini", "-s", "--", "hlsrelay"\]$', text)
    assert re.search(r"(?m)^USER [1-9]\d+:[1-9]\d+$", text)
    assert re.search(r"(?m)^HEALTHCHECK ", text)
    installs = re.findall(r"pip install (.+?)(?: \\)?\n", text)
    assert installs == [
        "--no-cache-dir --require-hashes --only-binary :all: -r requirements-image.lock",
        "--no-cache-dir --no-deps --no-build-isolation .",
    ]


def test_what_the_image_is_built_from_is_there_and_goes_to_the_builder() -> None:
    root, kept = DEPLOY.parent, (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text()):
        for path in line.split():
            assert (root / path).exists(), path
            assert f"!{path.partition('/')[0]}" in kept, path


# The service manager ----------------------------------------------------------------------------------------------------------------


class Manager:
    """What systemd is to a service: a socket that it tells its state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def told(self) -> list[str]:
        """Return every line that came until now."""
        while True:
            try:
                self.lines += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@needs("ffmpeg", "nginx", "redis-server", "redis-cli")
def test_a_relay_says_that_it_serves_that_it_lives_what_it_does_and_that_it_goes(manager: Manager, tmp_path: Path) -> None:
    with (
        redis_server() as redis,
        nginx(tmp_path / "origin", tmp_path / "nginx") as url,
        muxing(tmp_path / "origin", size="320x180", segment_s=1),
    ):
        redis.hset("hlsrelay:stream:news", source=f"{url}/live.m3u8")
        why = "it is the manager that is told"
        with relaying(tmp_path / "data", redis, unjudged=why, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="600000") as relay:
            until(lambda: "READY=1" in manager.told())
            assert relay.client.get(f"{relay.url}/healthz").status_code == 200
            until(lambda: "STATUS=stream news: running" in manager.told())
            until(lambda: manager.told().count("WATCHDOG=1") >= 4)
            assert "STOPPING=1" not in manager.told()
            assert relay.stop() == 0
        assert manager.told().count("STOPPING=1") == 1
        assert manager.told().count("READY=1") == 1


@needs("ffmpeg", "nginx", "redis-server", "redis-cli")
def test_a_daemon_holds_its_pid_file_against_a_second_one_and_quit_returns_once_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "hlsrelay.pid"
    with (
        redis_server() as redis,
        nginx(tmp_path / "origin", tmp_path / "nginx") as url,
        muxing(tmp_path / "origin", size="320x180", segment_s=1),
    ):
        redis.hset("hlsrelay:stream:news", source=f"{url}/live.m3u8")
        words = ("--pid-file", str(path))
        with relaying(tmp_path / "data", redis, words=words, unjudged="it is about the process") as relay:
            until(relay.media)
            env = environment(tmp_path / "other", redis)
            argv = [sys.executable, "-m", "hlsrelay", "run", "news", *words]
            second = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
            assert (second.returncode, second.stdout) == (5, "")
            assert second.stderr == f"hlsrelay: process {relay.pid} holds {path} and runs: hlsrelay quit --pid-file {path} ends it\n"
            assert hlsrelay("quit", *words, env=env) == f"process {relay.pid} is gone\n"
            assert relay.process.wait(0) == 0
    assert not path.exists()
    assert hlsrelay("quit", *words, env=env) == f"nothing runs that holds {path}\n"


@needs("redis-server", "redis-cli")
def test_a_stream_that_can_not_be_relayed_is_never_said_to_be_ready(manager: Manager, tmp_path: Path) -> None:
    with redis_server() as redis:
        env = os.environ | {"HLSRELAY_REDIS_URL": redis.url, "HLSRELAY_DATA": str(tmp_path), "HLSRELAY_HTTP": "127.0.0.1:0"}
        argv = [sys.executable, "-m", "hlsrelay", "run", "news"]
        done = subprocess.run(argv, env=env | {"NOTIFY_SOCKET": str(manager.path)}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr  # as RestartPreventExitStatus counts on
    assert "READY=1" not in manager.told()
