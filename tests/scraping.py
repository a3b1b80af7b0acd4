"""Read the metrics and probes of a process on this machine, as Prometheus and a kubelet do."""

import json
from http.client import HTTPConnection, HTTPException
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


class Served:
    """The endpoints of a process on a loopback port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body; status 0 without an answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        except (OSError, HTTPException):
            return 0, ""
        finally:
            connection.close()

    def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON object of a probe, with an empty reason if there is none."""
        status, body = self.get(path)
        return status, json.loads(body) if body else {"reason": ""}

    def status(self, path: str) -> int:
        """Return the status."""
        return self.get(path)[0]

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return every sample by its name and sorted labels."""
        status, text = self.get("/metrics")
        assert status == 200
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def figure(self, name: str, /, **labels: str) -> float | None:
        """Return one sample, or None where there is none."""
        return self.samples().get((name, tuple(sorted(labels.items()))))
