"""The compose file, validated by the Compose specification, and its broker's command, executed."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import jsonschema
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.deploy.documents import DASHBOARD, PROMETHEUS, ROOT, read_yaml, schema
from worker.database.schema import check, migrate
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.postgres import ADMINISTRATOR, PostgreSQL, postgres_programs
from worker.embedded.seaweedfs import weed_program
from worker.embedded.startup import HOST, start_on_free_ports, wait_until
from worker.embedded.valkey import valkey_program
from worker.settings import Settings

OURS = ("worker", "worker-gpu", "exporter", "relay", "web", "migrate")
#: Ends when it has done its work.
ONCE = "migrate"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Provide the compose file."""
    found: dict[str, Any] = read_yaml(ROOT / "docker-compose.yml")
    return found


def substituted(value: str, given: dict[str, str]) -> str:
    """Return a value with compose's variables substituted: ${NAME:?why}, ${NAME:-default} and $$."""

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, _, default = match[1].partition(":-")
        return given.get(name.partition(":?")[0], default)

    return re.sub(r"\$\$|\$\{([^}]*)\}", fill, value)


def test_the_compose_file_is_valid(compose: dict[str, Any]) -> None:
    """By the specification's schema, and by a stricter one that publishes ports only on the loopback."""
    jsonschema.Draft7Validator(schema("compose-spec")).validate(compose)
    jsonschema.Draft202012Validator(schema("compose")).validate(compose)


@pytest.mark.parametrize(
    "wrong", [{"helthcheck": {}}, {"stop_grace_period": 60}, {"depends_on": {"redis": {"condition": "up"}}}]
)
def test_the_schema_detects_mistakes_in_a_service(compose: dict[str, Any], wrong: dict[str, Any]) -> None:
    """A mistyped key, a number instead of a duration, an unknown condition."""
    worker = {**compose["services"]["worker"], **wrong}
    mistaken = {**compose, "services": {**compose["services"], "worker": worker}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema("compose-spec")).validate(mistaken)


def test_every_service_starts_after_its_dependencies_are_healthy(compose: dict[str, Any]) -> None:
    """Each dependency has a health check, and there is no cycle."""
    services = compose["services"]
    # The health check of our services is in their image.
    healthy = {name for name, service in services.items() if "healthcheck" in service or name in OURS}
    order: list[str] = []

    def start(name: str, above: tuple[str, ...] = ()) -> None:
        assert name not in above, f"a cycle: {above}"
        for needed, how in services[name].get("depends_on", {}).items():
            assert how["condition"] == (
                "service_completed_successfully" if needed == ONCE else "service_healthy"
            )
            assert needed in healthy
            start(needed, (*above, name))
        if name not in order:
            order.append(name)

    for name in services:
        start(name)
    assert healthy == set(services)
    assert order.index("redis") < order.index("worker")
    assert order.index("seaweedfs") < order.index("worker")
    # `up --wait` takes a container that ended for a failure unless a running one depends on its success.
    assert order.index("postgres") < order.index(ONCE) < min(order.index("relay"), order.index("web"))
    assert order.index("exporter") < order.index("prometheus") < order.index("grafana")


def test_no_secret_has_a_default(compose: dict[str, Any]) -> None:
    """Compose stops with a message where a password or key is missing."""
    secrets = 0
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|REDIS_URL|DATABASE_.*URL", variable):
                assert re.search(r"\$\{DNF_\w+:\?[a-z ]+\}", value), (name, variable)
                secrets += 1
    assert secrets == 27


def test_the_projects_containers_have_the_least_rights(compose: dict[str, Any]) -> None:
    """Read-only root with /tmp, no capabilities, no new privileges, no volumes, no ports but the page's."""
    for name in OURS:
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [entry.partition(":")[0] for entry in service["tmpfs"]] == ["/tmp"]  # noqa: S108
        assert "volumes" not in service
        assert service.get("ports", []) == (["127.0.0.1:8080:8080"] if name == "web" else [])


def test_every_variable_of_ours_is_a_setting(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped setting would be ignored silently, so each must be known, and all must load."""
    users = {name: name.removesuffix("-gpu") for name in OURS if name != ONCE}
    given = {f"DNF_{user.upper()}_PASSWORD": user[0] * 40 for user in users.values()}
    for name in OURS:
        with monkeypatch.context() as context:
            for variable, value in compose["services"][name]["environment"].items():
                assert variable.removeprefix("DNF_").lower() in Settings.model_fields, variable
                context.setenv(variable, substituted(value, given))
            settings = Settings()
        if (user := users.get(name)) is None:
            continue
        assert settings.redis_url.get_secret_value() == f"redis://{user}:{user[0] * 40}@redis:6379/0"
    assert not [name for name in compose["services"]["exporter"]["environment"] if "S3" in name]


def test_the_gpu_worker_starts_only_with_its_profile(compose: dict[str, Any]) -> None:
    """Only the GPU worker has a profile; it is built from the cuda target and reserves a GPU."""
    services = compose["services"]
    assert {name: s["profiles"] for name, s in services.items() if "profiles" in s} == {"worker-gpu": ["gpu"]}
    assert services["worker-gpu"]["build"]["target"] == "cuda"
    assert services["worker"]["build"]["target"] == services["exporter"]["build"]["target"] == "cpu"
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_grace_period_of_a_container_exceeds_that_of_its_worker(compose: dict[str, Any]) -> None:
    """Compose kills after its grace period; the worker's shutdown must end before."""
    for name in ("worker", "worker-gpu"):
        assert (
            int(compose["services"][name]["stop_grace_period"].removesuffix("s"))
            > Settings().shutdown_grace_seconds
        )


def test_prometheus_and_grafana_find_their_files_and_targets(compose: dict[str, Any]) -> None:
    """Mounted files exist, scrape targets are services with their ports, the dashboard is the home page."""
    services = compose["services"]
    for name in ("prometheus", "grafana"):
        for volume in services[name]["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (ROOT / source).is_dir(), volume
    jobs = {job["job_name"]: job for job in read_yaml(PROMETHEUS)["scrape_configs"]}
    (target,) = jobs["dnf-exporter"]["static_configs"][0]["targets"]
    assert target == f"exporter:{services['exporter']['environment']['DNF_HTTP_PORT']}"
    for job in ("dnf-worker", "dnf-relay", "dnf-web"):
        (search,) = jobs[job]["dns_sd_configs"]
        for name in search["names"]:
            assert str(search["port"]) == services[name]["environment"]["DNF_HTTP_PORT"]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    provider = read_yaml(ROOT / "deploy/grafana/provisioning/dashboards/fleet.yml")["providers"][0]
    assert home.parent == Path(provider["options"]["path"])
    assert home.name == DASHBOARD.name
    source = read_yaml(ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


def test_each_container_shares_a_network_only_with_what_it_talks_to(compose: dict[str, Any]) -> None:
    """The store has workers and page beside it; Prometheus and Grafana reach neither broker nor store."""
    members: dict[str, set[str]] = {name: set() for name in compose["networks"]}
    for name, service in compose["services"].items():
        for network in service["networks"]:
            members[network].add(name)
    assert members == {
        "broker": {"redis", "worker", "worker-gpu", "exporter", "relay", "web"},
        "store": {"seaweedfs", "worker", "worker-gpu", "web"},
        "database": {"postgres", "migrate", "relay", "web"},
        "monitoring": {"worker", "worker-gpu", "exporter", "relay", "web", "prometheus", "grafana"},
        "front": {"web"},
    }


@pytest.mark.parametrize("name", ["redis", "seaweedfs", "postgres", "prometheus", "grafana"])
def test_every_image_of_others_has_an_exact_version(compose: dict[str, Any], name: str) -> None:
    """Three numbers, or two where the project has no third; no tag that moves with the next release."""
    version = compose["services"][name]["image"].partition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-alpine)?", version)
    assert name in {"seaweedfs", "postgres"} or version.count(".") == 2


def test_the_store_of_compose_opens_only_its_s3_api(compose: dict[str, Any], tmp_path: Path) -> None:
    """Its command, run here on free ports: beyond the loopback it has the S3 API and that one's gRPC port."""
    keys = {"AWS_ACCESS_KEY_ID": "key-of-this-test", "AWS_SECRET_ACCESS_KEY": "secret-of-this-test"}
    started: list[GuardedProcess] = []
    found: list[int] = []

    def client(port: int) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}),
        )

    def serves(port: int) -> bool:
        try:
            client(port).put_object(Bucket="first", Key="first", Body=b"")
        except (BotoCoreError, ClientError):
            return False
        return True

    def start(ports: list[int]) -> None:
        s3, master, volume, filer = ports
        command = [
            part.replace("/data", str(tmp_path)) for part in compose["services"]["seaweedfs"]["command"]
        ]
        command = [part.replace("-s3.port=8333", f"-s3.port={s3}") for part in command]
        others = [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        server = GuardedProcess(
            [weed_program(), *command, *others],
            log=tmp_path / "server.log",
            environment={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **keys},
        )
        started.append(server)
        wait_until(lambda: serves(s3), server, "the store")
        found[:] = ports

    start_on_free_ports(start, count=4, companion=10_000)
    try:
        s3, *inner = found
        kind, healthy = compose["services"]["seaweedfs"]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "weed").symlink_to(weed_program())
        (tmp_path / "bin" / "nc").symlink_to(shutil.which("true") or "/bin/true")
        healthy = substituted(healthy, {}).replace("/tmp/", f"{tmp_path}/")  # noqa: S108
        healthy = healthy.replace(":9333", f":{inner[0]}").replace(":8888", f":{inner[2]}")
        for _ in range(2):
            path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
            subprocess.run(["/bin/sh", "-c", healthy], env={"PATH": path}, check=True, timeout=60)
        names = {each["Name"] for each in client(s3).list_buckets()["Buckets"]}
        worker = compose["services"]["worker"]["environment"]
        assert names == {"first", worker["DNF_UPLOAD_BUCKET"], worker["DNF_THUMBNAIL_BUCKET"]}
        listening = _listening_addresses(started[-1].pid)
        loopback = {port for host, port in listening if host == "127.0.0.1"}
        assert {*inner, *(port + 10_000 for port in inner)} <= loopback
        assert {port for host, port in listening if host != "127.0.0.1"} == {s3, s3 + 10_000}
    finally:
        started[-1].kill()


def _listening_addresses(pid: int) -> set[tuple[str, int]]:
    """Return the (address, port) of each TCP socket on which a process listens."""
    sockets = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                address, _, port = local.partition(":")
                host = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if table == "tcp" else f"[{address}]"
                listening.add((host, int(port, 16)))
    return listening


ROLES = ("producer", "worker", "consumer", "relay", "web", "exporter", "operator")


def test_the_broker_of_compose_has_one_user_for_each_role_and_a_memory_limit(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    """Its script, run here on this machine's Valkey, with passwords that contain shell metacharacters."""
    service = compose["services"]["redis"]
    shell, script = service["command"]
    (folder,) = (v.split(":")[0] for v in service["volumes"] if v.split(":")[1] == str(Path(script).parent))
    passwords = {role: f"p a$s'w;o#r`d {role}" for role in ROLES}
    environment = dict.fromkeys(service["environment"], "")
    environment |= {f"{role.upper()}_PASSWORD": password for role, password in passwords.items()}
    assert environment.keys() == service["environment"].keys()
    environment["REDIS_MAXMEMORY"] = substituted(service["environment"]["REDIS_MAXMEMORY"], {})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "valkey-server").symlink_to(valkey_program())
    environment |= {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "TMPDIR": str(tmp_path),
        "REDIS_DIR": str(tmp_path),
    }
    command = [shutil.which(shell) or shell, str(ROOT / folder / Path(script).name)]
    started: list[GuardedProcess] = []

    def start(ports: list[int]) -> None:
        options = ["--port", str(ports[0])]
        server = GuardedProcess([*command, *options], log=tmp_path / "server.log", environment=environment)
        started.append(server)

        def answers() -> bool:
            try:
                with redis.Redis(
                    port=ports[0], username="exporter", password=passwords["exporter"]
                ) as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, server, "the broker")

    port = start_on_free_ports(start)[0]
    server = started[-1]
    try:
        for role, password in passwords.items():
            with redis.Redis(port=port, username=role, password=password) as client:
                assert client.ping()
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.flushall()
        with redis.Redis(port=port, username="operator", password=passwords["operator"]) as client:
            memory: Any = client.info("memory")
            persistence: Any = client.info("persistence")
        assert memory["maxmemory"] == 2 << 30
        assert memory["maxmemory_policy"] == "noeviction"
        assert persistence["aof_enabled"] == 1
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        arguments = Path(f"/proc/{server.pid}/cmdline").read_text(encoding="utf-8")
        assert not [password for password in passwords.values() if password in arguments]
        assert oct((tmp_path / "users.acl").stat().st_mode)[-3:] == "600"
    finally:
        server.stop()
    del environment["CONSUMER_PASSWORD"]
    refused = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert refused.returncode != 0
    assert "CONSUMER_PASSWORD" in refused.stderr


def test_the_database_of_compose_has_a_role_for_the_service_that_owns_nothing(
    compose: dict[str, Any], postgres: PostgreSQL
) -> None:
    """Its script, run here on a server of ours with a password of quotes, and then the migration."""
    name, role, password = "of_compose", f"moderation_{uuid4().hex}", "p a$s'w;o\"r`d"
    postgres.create_database(name)
    service = compose["services"]["postgres"]
    owner = conninfo_to_dict(postgres.owner_url(name))
    environment = dict.fromkeys(service["environment"], "") | {
        "PATH": f"{postgres_programs()}:/usr/bin:/bin",
        "POSTGRES_USER": ADMINISTRATOR,
        "POSTGRES_DB": name,
        "MODERATION_PASSWORD": password,
        "PGHOST": HOST,
        "PGPORT": str(owner["port"]),
        "PGPASSWORD": str(owner["password"]),
    }
    folder = next(v.split(":")[0] for v in service["volumes"] if ":/docker-entrypoint-initdb.d" in v)
    (script,) = (ROOT / folder).iterdir()
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8").replace("ROLE moderation ", f"ROLE {role} ")
    run = ["/bin/sh", "-c", text.replace("TO moderation;", f"TO {role};")]
    subprocess.run(run, env=environment, check=True, timeout=60)
    url = make_conninfo("", host=HOST, port=owner["port"], dbname=name, user=role, password=password)
    migrate(postgres.owner_url(name), url)
    check(url)
    refused = subprocess.run(
        run, env=environment | {"MODERATION_PASSWORD": ""}, capture_output=True, timeout=60, check=False
    )
    assert refused.returncode != 0
