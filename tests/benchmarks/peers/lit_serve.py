"""LitServe over HTTP, with its dynamic batches: `python -m tests.benchmarks.peers.lit_serve PORT`."""

import sys
from typing import Any

import litserve

from detector.detector import Finding
from detector.images.views import PreparedPicture
from tests.benchmarks.peers.examination import Examination


class Checks(litserve.LitAPI):
    """Answers POST /predict with the score of an upload."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the base class's signature
        """Load the detector in the process that runs it."""
        self._examination = Examination()

    def decode_request(self, request: dict[str, str], **_: Any) -> PreparedPicture:
        """Fetch and decode an upload."""
        return self._examination.prepared(request["bucket"], request["key"])

    def batch(self, inputs: list[PreparedPicture]) -> list[PreparedPicture]:
        """Return the pictures as they are."""
        return list(inputs)

    def predict(self, pictures: list[PreparedPicture], **_: Any) -> list[Finding]:
        """Examine a batch."""
        return self._examination.examine(pictures)

    def unbatch(self, findings: list[Finding]) -> list[Finding]:
        """Return the findings as they are."""
        return findings

    def encode_response(self, finding: Finding, **_: Any) -> dict[str, float]:
        """Return the score."""
        return {"score": finding.probability}


if __name__ == "__main__":
    api = Checks(max_batch_size=16, batch_timeout=0.01)
    litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, timeout=60).run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
