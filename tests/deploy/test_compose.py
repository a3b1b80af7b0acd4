"""The compose file, validated by the Compose specification, and its broker's command, executed."""

import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis

from tests.deploy.documents import DASHBOARD, PROMETHEUS, ROOT, read_yaml, schema
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import start_on_free_ports, wait_until
from worker.embedded.valkey import valkey_program
from worker.settings import Settings

OURS = ("worker", "worker-gpu", "exporter")


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
            assert how["condition"] == "service_healthy"
            assert needed in healthy
            start(needed, (*above, name))
        if name not in order:
            order.append(name)

    for name in services:
        start(name)
    assert healthy == set(services)
    assert order.index("redis") < order.index("worker")
    assert order.index("seaweedfs") < order.index("worker")
    assert order.index("exporter") < order.index("prometheus") < order.index("grafana")


def test_no_secret_has_a_default(compose: dict[str, Any]) -> None:
    """Compose stops with a message where a password or key is missing."""
    secrets = 0
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|REDIS_URL", variable):
                assert re.search(r"\$\{DNF_\w+:\?[a-z ]+\}", value), (name, variable)
                secrets += 1
    assert secrets == 11


def test_the_projects_containers_have_the_least_rights(compose: dict[str, Any]) -> None:
    """Read-only root with /tmp, no capabilities, no new privileges, no volumes, no ports."""
    for name in OURS:
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [entry.partition(":")[0] for entry in service["tmpfs"]] == ["/tmp"]  # noqa: S108
        assert "volumes" not in service
        assert "ports" not in service


def test_every_variable_of_ours_is_a_setting(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped setting would be ignored silently, so each must be known, and all must load."""
    given = {"DNF_REDIS_PASSWORD": "p" * 40}
    for name in OURS:
        with monkeypatch.context() as context:
            for variable, value in compose["services"][name]["environment"].items():
                assert variable.removeprefix("DNF_").lower() in Settings.model_fields, variable
                context.setenv(variable, substituted(value, given))
            settings = Settings()
        assert settings.redis_url.get_secret_value() == f"redis://:{'p' * 40}@redis:6379/0"
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
    (search,) = jobs["dnf-worker"]["dns_sd_configs"]
    for name in search["names"]:
        assert str(search["port"]) == services[name]["environment"]["DNF_HTTP_PORT"]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    provider = read_yaml(ROOT / "deploy/grafana/provisioning/dashboards/fleet.yml")["providers"][0]
    assert home.parent == Path(provider["options"]["path"])
    assert home.name == DASHBOARD.name
    source = read_yaml(ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


def test_the_broker_requires_its_password_and_keeps_an_append_only_file(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    """Its command, run by a shell with this machine's Valkey and a password with shell metacharacters."""
    shell, option, script = compose["services"]["redis"]["command"]
    password = "p a$s'w;o#r`d"
    program = valkey_program()
    started: list[GuardedProcess] = []

    def answers(port: int) -> bool:
        try:
            with redis.Redis(port=port, password=password) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def start(ports: list[int]) -> None:
        # The program is substituted last: its path may contain the other strings.
        own = script.replace("/tmp/", f"{tmp_path}/").replace("dir /data", f"dir {tmp_path}")  # noqa: S108
        own = own.replace("exec valkey-server", f"exec {program} --port {ports[0]} --include")
        server = GuardedProcess(
            [shutil.which(shell) or shell, option, own],
            log=tmp_path / "server.log",
            environment={"VALKEY_PASSWORD": password, "PATH": "/usr/bin:/bin"},
        )
        started.append(server)
        wait_until(lambda: answers(ports[0]), server, "the broker")

    script = substituted(script, {})
    port = start_on_free_ports(start)[0]
    server = started[-1]
    try:
        with redis.Redis(port=port, password=password) as client:
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
            assert client.config_get("save") == {"save": ""}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert password not in Path(f"/proc/{server.pid}/cmdline").read_text(encoding="utf-8")
        assert oct((tmp_path / "valkey.conf").stat().st_mode)[-3:] == "600"
    finally:
        server.stop()
