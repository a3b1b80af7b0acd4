"""The Helm chart, rendered by Helm's own library and validated by the schemas of Kubernetes and operators."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.documents import ALERTS, CHART, DASHBOARD, manifests_in, read_yaml, schema
from worker.operations.exporter import DOCUMENTED as EXPORTED
from worker.settings import Settings

KUBERNETES = ("1.30", "1.33", "1.37")

VALUES: dict[str, dict[str, Any]] = {
    "default": {},
    "scaled": {"autoscaling": {"enabled": True}, "monitoring": {"serviceMonitor": {"enabled": True}}},
    "gpu": {
        "worker": {
            "gpu": {"enabled": True, "count": 2, "runtimeClassName": "nvidia"},
            "nodeSelector": {"nvidia.com/gpu.product": "L4"},
            "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
            "rollout": {"maxSurge": 0, "maxUnavailable": 1},
        }
    },
    "minimal": {
        "podSecurityContext": None,
        "s3": {"thumbnailBucket": ""},
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False},
        "worker": {"topologySpread": {"enabled": False}, "disruptionBudget": {"enabled": False}},
    },
    "tls": {"redis": {"tls": {"caSecretName": "dnf-redis", "caKey": "authority.pem"}}},
    "reviews": {
        "redis": {"tls": {"caSecretName": "dnf-redis"}},
        "relay": {
            "enabled": True,
            "replicas": 2,
            "settings": {"review_daily_limit": "500"},
            "extraEnv": [{"name": "TZ", "value": "UTC"}],
            "nodeSelector": {"kind": "small"},
            "affinity": {"nodeAffinity": {}},
            "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
            "priorityClassName": "people",
            "podAnnotations": {"note": "of the platform"},
            "podLabels": {"tier": "people"},
        },
        "web": {
            "enabled": True,
            "publicUrl": "https://review.example.org",
            "trustedProxies": ["10.0.0.0/8", "192.0.2.1"],
            "jwt": {"keys": "https://id.example/keys", "issuer": "https://id.example", "audience": "a"},
            "roles": ["ts-leads=senior", "ts=moderator"],
            "ingress": {"enabled": True, "host": "review.example.org", "tlsSecretName": "review-tls"},
            "settings": {"web_claims_per_minute": "30"},
            "extraVolumes": [{"name": "keys", "configMap": {"name": "keys"}}],
            "extraVolumeMounts": [{"name": "keys", "mountPath": "/keys"}],
        },
        "monitoring": {"podMonitor": {"enabled": True}},
        "networkPolicy": {
            "databasePeers": [{"ipBlock": {"cidr": "192.0.2.7/32"}}],
            "webhookPorts": [443, 8443],
        },
    },
    "everything": {
        "nameOverride": "moderation",
        "commonLabels": {"team": "trust"},
        "settings": {"verdict_retention_seconds": "86400", "log_level": "DEBUG"},
        "redis": {"tls": {"caConfigMapName": "authorities", "certificateSecretName": "dnf-client"}},
        "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["registry"]},
        "s3": {"secretName": "dnf-s3", "endpointUrl": "https://s3.example.org"},
        "detector": {
            "bundle": "s3://models/serving",
            "bundleDigest": "0" * 64,
            "shadowBundle": "s3://models/next",
            "volume": {"persistentVolumeClaim": {"claimName": "bundles", "readOnly": True}},
            "cache": {"warm": True, "volume": {"ephemeral": {"volumeClaimTemplate": {
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}}}}}},
        },
        "worker": {
            "settings": {"batch_size": "32", "batch_wait_seconds": "0.02"},
            "extraEnv": [{"name": "AWS_CA_BUNDLE", "value": "/authority/ca.crt"}],
            "extraVolumes": [{"name": "authority", "configMap": {"name": "store-authority"}}],
            "extraVolumeMounts": [{"name": "authority", "mountPath": "/authority", "readOnly": True}],
            "priorityClassName": "batch",
            "podAnnotations": {"note": "of the platform"},
            "podLabels": {"tier": "batch"},
            "affinity": {"nodeAffinity": {}},
        },
        "exporter": {
            "settings": {"expected_checks_per_second": "40", "log_level": "INFO"},
            "extraEnv": [{"name": "TZ", "value": "UTC"}],
            "nodeSelector": {"kind": "small"},
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "monitoring",
            "podAnnotations": {"note": "of the platform"},
            "podLabels": {"tier": "monitoring"},
        },
        "autoscaling": {
            "enabled": True,
            "minReplicas": 0,
            "prometheusBearerTokenSecret": "token",
            "metricSelector": 'namespace="prod"',
        },
        "monitoring": {
            "podMonitor": {"enabled": True},
            "serviceMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True},
            "dashboard": {"enabled": True},
            "labels": {"release": "prometheus"},
            "runbookBaseUrl": "https://git.example.org/dnf/blob/main/",
        },
        "networkPolicy": {
            "redisPeers": [{"podSelector": {"matchLabels": {"app": "valkey"}}}],
            "s3Peers": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
            "extraEgress": [{"ports": [{"protocol": "TCP", "port": 4318}]}],
        },
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/dnf"}},
    },
}  # fmt: skip

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def chart() -> Iterator[helm.Chart]:
    """Provide the loaded chart."""
    with helm.Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def rendered(chart: helm.Chart) -> Callable[[str], list[Manifest]]:
    """Provide a function that renders the manifests for a set of values."""

    def render(name: str) -> list[Manifest]:
        texts = chart.render(VALUES[name], name="prod", namespace="moderation")
        return [
            manifest
            for path, text in texts.items()
            if not path.endswith("NOTES.txt")
            for manifest in manifests_in(text)
        ]

    return render


def one(manifests: list[Manifest], kind: str, ending: str = "") -> Manifest:
    """Return the only manifest of a kind whose name has the ending."""
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].endswith(ending)]
    return found


def pod_specs(manifests: list[Manifest]) -> list[Manifest]:
    """Return the pod specifications of all Deployments."""
    return [m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "Deployment"]


@pytest.mark.parametrize("name", VALUES)
def test_the_chart_passes_helms_strict_linter(name: str) -> None:
    """No finding of any severity for any set of values."""
    report = helm.lint(CHART, VALUES[name], strict=True, kube_version="v1.33.0")
    assert report["total_charts_linted"] == 1
    assert not report["errors"]
    assert not report["messages"]


@pytest.mark.parametrize("name", VALUES)
def test_every_manifest_is_valid(rendered: Callable[[str], list[Manifest]], name: str) -> None:
    """By Kubernetes' own schemas, strictly, of the chart's oldest version and newer ones.

    KEDA's and the Prometheus operator's kinds: by schemas of the fields that the chart uses.
    """
    manifests = rendered(name)
    identities = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(set(identities)) == len(identities) >= 3
    for manifest in manifests:
        group = manifest["apiVersion"].partition("/")[0]
        custom = {"keda.sh": "keda", "monitoring.coreos.com": "prometheus-operator"}.get(group)
        if custom:
            definitions = schema(custom)
            jsonschema.Draft202012Validator(
                {"$defs": definitions["$defs"], "$ref": f"#/$defs/{manifest['kind']}"}
            ).validate(manifest)
        else:
            for version in KUBERNETES:
                kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_selectors_match_their_pods_and_references_resolve(
    rendered: Callable[[str], list[Manifest]], name: str
) -> None:
    """Each selector, scaling target, mounted volume and named port exists in the manifests."""
    manifests = rendered(name)
    pods = [m["spec"]["template"]["metadata"]["labels"] for m in manifests if m["kind"] == "Deployment"]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        labels = {
            "Service": lambda s: s["selector"],
            "NetworkPolicy": lambda s: s["podSelector"]["matchLabels"],
            "PodDisruptionBudget": lambda s: s["selector"]["matchLabels"],
            "PodMonitor": lambda s: s["selector"]["matchLabels"],
            "Deployment": lambda s: s["selector"]["matchLabels"],
        }.get(manifest["kind"])
        if labels:
            assert sum(labels(spec).items() <= pod.items() for pod in pods) == 1, manifest["metadata"]["name"]
        if manifest["kind"] == "ScaledObject":
            one(manifests, "Deployment", spec["scaleTargetRef"]["name"])
        if manifest["kind"] == "ServiceMonitor":
            service = one(manifests, "Service")
            assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    for spec in pod_specs(manifests):
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            names = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container.get(probe, {}).get("httpGet", {}).get("port", "http") in names | {"http"}


@pytest.mark.parametrize("name", VALUES)
def test_every_container_runs_with_the_least_rights(
    rendered: Callable[[str], list[Manifest]], name: str
) -> None:
    """Restricted Pod Security Standard, read-only root, no service account token, bounded memory."""
    for spec in pod_specs(rendered(name)):
        assert spec["automountServiceAccountToken"] is False
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod.get("runAsUser", 1) > 0
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp"}  # noqa: S108


def test_the_grace_period_of_a_pod_exceeds_that_of_its_worker(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """The pod's grace period covers preStop, the worker's grace period and a margin."""
    spec = one(rendered("default"), "Deployment", "worker")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    grace = int(environment(container)["DNF_SHUTDOWN_GRACE_SECONDS"])
    assert (
        spec["terminationGracePeriodSeconds"]
        >= grace + container["lifecycle"]["preStop"]["sleep"]["seconds"] + 5
    )


def environment(container: Manifest) -> dict[str, Any]:
    """Return a container's variables with their values or sources."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


@pytest.mark.parametrize("name", VALUES)
def test_every_variable_is_a_setting_that_takes_its_value(
    rendered: Callable[[str], list[Manifest]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped setting would be ignored silently, so each must be known, and all must load."""
    for spec in pod_specs(rendered(name)):
        for container in spec["containers"]:
            with monkeypatch.context() as context:
                for variable, value in environment(container).items():
                    if not variable.startswith("DNF_"):
                        continue
                    assert variable.removeprefix("DNF_").lower() in Settings.model_fields, variable
                    urls = {"DNF_REDIS_URL": "redis://h:1/0", "DNF_DATABASE_URL": "postgresql://h/d"}
                    secret = urls.get(variable, "secret")
                    text = value if isinstance(value, str) else secret
                    # The mounted files do not exist here; any file will do.
                    context.setenv(variable, __file__ if variable.endswith("_FILE") else text)
                Settings()


def test_secrets_come_only_by_reference(rendered: Callable[[str], list[Manifest]]) -> None:
    """Credentials are references, no Secret is rendered, and the exporter has no keys of the store."""
    manifests = rendered("everything")
    assert not [m for m in manifests if m["kind"] == "Secret"]
    worker = environment(one(manifests, "Deployment", "worker")["spec"]["template"]["spec"]["containers"][0])
    for variable in (
        "DNF_REDIS_URL",
        "DNF_S3_ACCESS_KEY_ID",
        "DNF_S3_SECRET_ACCESS_KEY",
        "AWS_SECRET_ACCESS_KEY",
    ):
        assert "secretKeyRef" in worker[variable]
    exporter = environment(
        one(manifests, "Deployment", "exporter")["spec"]["template"]["spec"]["containers"][0]
    )
    assert not [name for name in exporter if "S3" in name or "AWS" in name]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("default", {}),
        ("tls", {"DNF_REDIS_CA_FILE": ("secret", "dnf-redis", "authority.pem")}),
        (
            "everything",
            {
                "DNF_REDIS_CA_FILE": ("configMap", "authorities", "ca.crt"),
                "DNF_REDIS_CERTIFICATE_FILE": ("secret", "dnf-client", "tls.crt"),
                "DNF_REDIS_KEY_FILE": ("secret", "dnf-client", "tls.key"),
            },
        ),
    ],
)
def test_tls_certificates_are_mounted_in_both_deployments(
    rendered: Callable[[str], list[Manifest]], name: str, files: dict[str, tuple[str, str, str]]
) -> None:
    """The file of each setting comes from the named key, read-only, for the pod's group only."""
    for component in ("worker", "exporter"):
        spec = one(rendered(name), "Deployment", component)["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        found = {}
        for variable, path in environment(container).items():
            if not variable.endswith("_FILE"):
                continue
            folder, _, file = path.rpartition("/")
            assert mounts[folder]["readOnly"] is True
            projected = volumes[mounts[folder]["name"]]["projected"]
            assert projected["defaultMode"] == 0o440
            found[variable] = next(
                (kind, source["name"], item["key"])
                for each in projected["sources"]
                for kind, source in each.items()
                for item in source["items"]
                if item["path"] == file
            )
        assert found == files


def test_the_exporter_uses_the_cpu_image_without_gpus(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """In a GPU fleet, the worker has the cuda image and its GPUs, the exporter has neither."""
    manifests = rendered("gpu")
    exporter = one(manifests, "Deployment", "exporter")["spec"]["template"]["spec"]
    worker = one(manifests, "Deployment", "worker")["spec"]["template"]["spec"]
    assert exporter["containers"][0]["image"].endswith("-cpu")
    assert "nvidia.com/gpu" not in exporter["containers"][0]["resources"]["limits"]
    assert worker["containers"][0]["image"].endswith("-cuda")
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert worker["runtimeClassName"] == "nvidia"
    assert {t["key"] for t in worker["tolerations"]} == {"nvidia.com/gpu", "spot"}
    assert environment(worker["containers"][0])["DNF_DEVICE"] == "cuda"
    assert [port["containerPort"] for port in worker["containers"][0]["ports"]] == [9100, 9101]


def test_the_fleet_scales_and_survives_missing_metrics(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """Both triggers are averages, as KEDA's fallback requires, and a missing metric is an error, not a zero.

    An infinite backlog is clamped, and the queries read metrics of the exporter.
    """
    spec = one(rendered("scaled"), "ScaledObject")["spec"]
    values = read_yaml(CHART / "values.yaml")["autoscaling"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (
        values["minReplicas"],
        values["maxReplicas"],
    )
    assert spec["pollingInterval"] == values["pollingIntervalSeconds"]
    assert spec["cooldownPeriod"] == values["cooldownPeriodSeconds"]
    assert spec["fallback"]["replicas"] == values["fallbackReplicas"] > 0
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == values["scaleDownStabilizationSeconds"]
    backlog, checks = spec["triggers"]
    assert float(backlog["metadata"]["threshold"]) == values["backlogSecondsTarget"]
    assert float(checks["metadata"]["threshold"]) == values["checksPerReplicaTarget"]
    exported = {metric.name for metric in EXPORTED}
    for trigger in (backlog, checks):
        assert trigger["metricType"] == "AverageValue"
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["metadata"]["activationThreshold"] == "0"
        read = set(re.findall(r"\bdnf_[a-z_]+", trigger["metadata"]["query"]))
        assert trigger["metadata"]["query"].count('{namespace="moderation",release="prod"}') == 2
        assert read
        assert read <= exported
    assert "clamp_max" in backlog["metadata"]["query"]
    assert "replicas" not in one(rendered("scaled"), "Deployment", "worker")["spec"]


def test_the_defaults_bring_up_a_worker_that_needs_neither_keda_nor_prometheus(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """At least one, scaled or not; only `minReplicas: 0` waits for metrics, and the notes say for which."""
    manifests = rendered("default")
    assert one(manifests, "Deployment", "worker")["spec"]["replicas"] == 1
    assert {m["apiVersion"].partition("/")[0] for m in manifests} == {
        "v1",
        "apps",
        "policy",
        "networking.k8s.io",
    }
    assert one(rendered("scaled"), "ScaledObject")["spec"]["minReplicaCount"] == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["Secret dnf-redis", "buckets uploads to read, and thumbnails to write", "1 workers"]),
        ({"autoscaling": {"enabled": True, "minReplicas": 0}}, ["serviceMonitor", "no worker starts"]),
        ({"autoscaling": {"enabled": True}}, ["serviceMonitor", "does not follow the load"]),
    ],
)
def test_the_notes_say_what_is_missing(
    chart: helm.Chart, values: dict[str, Any], expected: list[str]
) -> None:
    """The Secret, the buckets, and metrics that nobody scrapes."""
    notes = chart.render(values, name="prod", namespace="moderation")["dnf-moderation/templates/NOTES.txt"]
    assert all(text in notes for text in expected)
    assert ("WARNING" in notes) == bool(values)


def test_monitors_tell_fleets_apart(rendered: Callable[[str], list[Manifest]]) -> None:
    """The release is a label of every scraped metric, as alerts and dashboard expect."""
    for kind, endpoints in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")):
        for endpoint in one(rendered("everything"), kind)["spec"][endpoints]:
            assert {"targetLabel": "release", "replacement": "prod"} in endpoint["relabelings"]


def test_a_pod_needs_no_fixed_ids(rendered: Callable[[str], list[Manifest]]) -> None:
    """OpenShift's restricted-v2 refuses ids that are not the namespace's; without them it sets its own."""
    for spec in pod_specs(rendered("minimal")):
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for spec in pod_specs(rendered("default")):
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001


def test_names_labels_and_placement_reach_every_object(rendered: Callable[[str], list[Manifest]]) -> None:
    """`nameOverride`, `commonLabels`, and what a pod of the exporter can be given like one of the worker."""
    manifests = rendered("everything")
    for manifest in manifests:
        assert manifest["metadata"]["name"].startswith("prod-moderation")
        assert manifest["metadata"]["labels"]["app.kubernetes.io/name"] == "moderation"
        assert manifest["metadata"]["labels"]["team"] == "trust"
    for component, tier in (("worker", "batch"), ("exporter", "monitoring")):
        template = one(manifests, "Deployment", component)["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert (labels["team"], labels["tier"]) == ("trust", tier)
        assert template["metadata"]["annotations"] == {"note": "of the platform"}
        assert template["spec"]["affinity"] == {"nodeAffinity": {}}
        assert template["spec"]["priorityClassName"] == tier


def test_the_settings_of_the_fleet_reach_worker_and_exporter(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """Both know the same stream and retention; a setting of one of them takes precedence."""
    found = {
        component: environment(
            one(rendered("everything"), "Deployment", component)["spec"]["template"]["spec"]["containers"][0]
        )
        for component in ("worker", "exporter")
    }
    assert {each["DNF_VERDICT_RETENTION_SECONDS"] for each in found.values()} == {"86400"}
    assert (found["worker"]["DNF_LOG_LEVEL"], found["exporter"]["DNF_LOG_LEVEL"]) == ("DEBUG", "INFO")


def test_every_container_of_a_worker_has_the_extra_variables_and_mounts(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """The containers that fetch bundles reach the same store, with the same CA."""
    spec = one(rendered("everything"), "Deployment", "worker")["spec"]["template"]["spec"]
    containers = [*spec["initContainers"], *spec["containers"]]
    assert len(containers) == 3
    for container in containers:
        assert environment(container)["AWS_CA_BUNDLE"] == "/authority/ca.crt"
        assert "/authority" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_thumbnails_are_kept_in_the_store(rendered: Callable[[str], list[Manifest]]) -> None:
    """By default; an empty name keeps them in Redis."""
    for name, bucket in (("default", "thumbnails"), ("minimal", None)):
        (container,) = one(rendered(name), "Deployment", "worker")["spec"]["template"]["spec"]["containers"]
        assert environment(container).get("DNF_THUMBNAIL_BUCKET") == bucket


def test_a_pod_has_one_process_for_each_of_its_gpus(chart: helm.Chart) -> None:
    """Unless `worker.processes` says otherwise; each has its port, monitor and network policy."""
    for processes, expected in ((0, 3), (2, 2)):
        values = {
            "worker": {"gpu": {"enabled": True, "count": 3}, "processes": processes},
            "autoscaling": {"enabled": True},
            "monitoring": {"podMonitor": {"enabled": True}},
        }
        texts = chart.render(values, name="prod", namespace="moderation")
        manifests = [m for p, t in texts.items() if p.endswith(".yaml") for m in manifests_in(t)]
        (container,) = one(manifests, "Deployment", "worker")["spec"]["template"]["spec"]["containers"]
        assert environment(container)["DNF_PROCESSES"] == str(expected)
        assert len(container["ports"]) == expected
        assert len(one(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]) == expected
        (rule,) = one(manifests, "NetworkPolicy", "worker")["spec"]["ingress"]
        assert rule["ports"][0]["endPort"] == 9100 + expected - 1
        query = one(manifests, "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
        assert f"/ {expected}, 1)" in query


@pytest.mark.parametrize(
    ("endpoint", "ports", "expected"),
    [
        ("", [], {443}),
        ("https://s3.example.org", [], {443}),
        ("http://s3.example.org", [], {80}),
        ("http://store:8333", [], {8333}),
        ("https://[2001:db8::1]:9000/", [], {9000}),
        ("https://[2001:db8::1]", [], {443}),
        ("http://store:8333", [443, 9000], {443, 9000}),
    ],
)
def test_the_network_policy_opens_the_port_of_the_endpoint(
    chart: helm.Chart, endpoint: str, ports: list[int], expected: set[int]
) -> None:
    """The port of the URL or of its scheme, unless ports are given."""
    values = {"s3": {"endpointUrl": endpoint}, "networkPolicy": {"s3Ports": ports}}
    text = chart.render(values, name="prod", namespace="moderation")
    manifests = manifests_in(text["dnf-moderation/templates/networkpolicy.yaml"])
    egress = one(manifests, "NetworkPolicy", "worker")["spec"]["egress"]
    assert {port["port"] for port in egress[2]["ports"]} == expected


def test_the_chart_ships_the_alerts_and_the_dashboard_of_compose(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """The same files as compose mounts; only the runbook links get the operator's prefix."""
    manifests = rendered("everything")
    shipped = read_yaml(ALERTS)
    base = VALUES["everything"]["monitoring"]["runbookBaseUrl"]
    for group in shipped["groups"]:
        for rule in group["rules"]:
            rule["annotations"]["runbook_url"] = base + rule["annotations"]["runbook_url"]
    assert one(manifests, "PrometheusRule")["spec"] == shipped
    kept = one(manifests, "ConfigMap", "dashboard")["data"]["dnf-moderation.json"]
    assert json.loads(kept) == json.loads(DASHBOARD.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"worker": {"proceses": 2}},
        {"worker": {"settings": {"batch_size": 32}}},
        {"worker": {"settings": {"redis_url": "redis://:secret@host/0"}}},
        {"autoscaling": {"maxReplicas": 0}},
        {"autoscaling": {"enabled": True, "minReplicas": 30}},
        {"commonLabels": {"team": 1}},
        {"autoscaling": {"backlogSecondsTarget": 0}},
        {"redis": {"secretName": ""}},
        {"redis": {"url": "redis://:secret@host/0"}},
        {"relay": {"settings": {"database_url": "postgresql://u:secret@host/d"}}},
        {"relay": {"replicas": 0}},
        {"web": {"jwt": {"keys": "https://login.example.org/keys"}}},
        {"web": {"roles": ["staff=boss"]}},
        {"web": {"publicUrl": "https://review.example.org/path"}},
        {"redis": {"tls": {"caSecretName": "one", "caConfigMapName": "another"}}},
        {"image": {"digest": "latest"}},
        {"s3": {"allowedBuckets": []}},
        {"worker": {"disruptionBudget": {"maxUnavailable": "250%"}}},
    ],
    ids=str,
)
def test_invalid_values_are_refused(chart: helm.Chart, wrong: dict[str, Any]) -> None:
    """A mistyped name, a wrong type, a secret among the values, an impossible size."""
    with pytest.raises(helm.HelmError, match=next(iter(wrong))):
        chart.render(wrong, name="prod", namespace="moderation")


def test_network_policies_allow_only_the_required_traffic(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """The exporter reaches DNS and Redis, a worker also S3; only the monitoring namespace reaches them."""
    manifests = rendered("default")
    ports = {}
    for component in ("worker", "exporter"):
        spec = one(manifests, "NetworkPolicy", component)["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        (ingress,) = spec["ingress"]
        (peer,) = ingress["from"]
        assert peer == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        ports[component] = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    assert ports == {"worker": {53, 6379, 443}, "exporter": {53, 6379}}


def test_a_relay_has_its_own_secrets_and_only_its_first_container_the_owners(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """The schema is migrated before it starts; without the owner's Secret somebody else does so."""
    manifests = rendered("reviews")
    spec = one(manifests, "Deployment", "relay")["spec"]["template"]["spec"]
    ((migrate,), (relay,)) = spec["initContainers"], spec["containers"]
    assert (migrate["args"], relay["args"]) == (["database", "migrate"], ["relay"])
    secrets = {
        name: {
            v: value["secretKeyRef"]["name"] for v, value in environment(each).items() if "key" in str(value)
        }
        for name, each in (("migrate", migrate), ("relay", relay))
    }
    assert secrets == {
        "migrate": {"DNF_DATABASE_URL": "dnf-database", "DNF_DATABASE_OWNER_URL": "dnf-database-owner"},
        "relay": {"DNF_DATABASE_URL": "dnf-database", "DNF_REDIS_URL": "dnf-redis-relay"},
    }
    assert environment(relay)["DNF_REDIS_CA_FILE"] == "/redis-tls/ca.crt"
    assert environment(relay)["DNF_WEB_PUBLIC_URL"] == "https://review.example.org"
    assert not [name for name in environment(relay) if "S3" in name]
    worker = one(manifests, "Deployment", "worker")["spec"]["template"]["spec"]["containers"][0]
    assert environment(worker)["DNF_REDIS_URL"]["secretKeyRef"]["name"] == "dnf-redis"
    ports = {
        port["port"]
        for rule in one(manifests, "NetworkPolicy", "relay")["spec"]["egress"]
        for port in rule["ports"]
    }
    assert ports == {53, 6379, 5432, 443, 8443}
    (endpoint,) = one(manifests, "PodMonitor", "relay")["spec"]["podMetricsEndpoints"]
    assert {"targetLabel": "job", "replacement": "dnf-relay"} in endpoint["relabelings"]


def test_without_the_owners_secret_a_relay_only_checks_the_schema(chart: helm.Chart) -> None:
    values = {"relay": {"enabled": True}, "database": {"ownerSecretName": ""}}
    text = chart.render(values, name="prod", namespace="moderation")["dnf-moderation/templates/relay.yaml"]
    assert "initContainers" not in yaml.safe_load(text)["spec"]["template"]["spec"]


def test_the_page_is_reached_from_the_ingress_alone_and_reaches_what_it_shows(
    rendered: Callable[[str], list[Manifest]],
) -> None:
    """It has the store's keys, its own user of the broker and never the owner of the database."""
    manifests = rendered("reviews")
    (page,) = one(manifests, "Deployment", "web")["spec"]["template"]["spec"]["containers"]
    variables = environment(page)
    assert page["args"] == ["web"]
    assert variables["DNF_REDIS_URL"]["secretKeyRef"]["name"] == "dnf-redis-web"
    assert variables["DNF_DATABASE_URL"]["secretKeyRef"]["name"] == "dnf-database"
    assert "DNF_DATABASE_OWNER_URL" not in variables
    assert variables["DNF_WEB_TRUSTED_PROXIES"] == "10.0.0.0/8,192.0.2.1"
    assert variables["DNF_WEB_ROLES"] == "ts-leads=senior,ts=moderator"
    assert variables["DNF_WEB_JWT_AUDIENCE"] == "a"
    assert variables["DNF_WEB_CLAIMS_PER_MINUTE"] == "30"
    assert variables["DNF_ALLOWED_BUCKETS"] == "uploads"
    ports = {port["name"]: port["containerPort"] for port in page["ports"]}
    assert ports == {"page": 8080, "http": 9102}
    assert (variables["DNF_WEB_PORT"], variables["DNF_HTTP_PORT"]) == ("8080", "9102")
    policy = one(manifests, "NetworkPolicy", "web")["spec"]
    sources = {
        rule["ports"][0]["port"]: rule["from"][0]["namespaceSelector"]["matchLabels"].popitem()[1]
        for rule in policy["ingress"]
    }
    assert sources == {9102: "monitoring", 8080: "ingress-nginx"}
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 6379, 5432, 443}
    (rule,) = one(manifests, "Ingress", "web")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": "prod-dnf-moderation-web", "port": {"name": "page"}}
    service = one(manifests, "Service", "web")["spec"]
    assert service["ports"][0]["targetPort"] == "page"
    (endpoint,) = one(manifests, "PodMonitor", "web")["spec"]["podMetricsEndpoints"]
    assert {"targetLabel": "job", "replacement": "dnf-web"} in endpoint["relabelings"]
