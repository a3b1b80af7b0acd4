"""What the review page costs: `python -m tests.benchmarks.review_page` prints processor time by request."""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from tests.conftest import _picture
from tests.site import RunningSite, person, sites
from worker.embedded.services import EmbeddedServices
from worker.settings import Settings
from worker.telemetry.logs import configure_logs

Result = TypeVar("Result")

_ITEMS = 20
_SIZES = {"0.1 megapixels": (400, 250), "1 megapixel": (1225, 816), "12 megapixels": (4242, 2828)}
_MODERATOR = person("ada")


def main() -> None:
    """Print a table in Markdown; the time of the client, which shares the process, is in it."""
    configure_logs(Settings(log_level="WARNING"))
    with TemporaryDirectory(prefix="dnf-benchmark-") as folder:
        Path(folder).chmod(0o711)
        os.environ["TMPDIR"] = folder
        with (
            EmbeddedServices(database=True) as services,
            sites(services, services.environment(), _picture) as start,
        ):
            site = start(web_claims_per_minute=100_000, web_requests_per_minute=1_000_000)
            rows = {name: _measure(site, size) for name, size in _SIZES.items()}
    names = list(next(iter(rows.values())))
    lines = [f"| picture | {' | '.join(names)} | all |", f"|---|{'---|' * (len(names) + 1)}"]
    for picture, costs in rows.items():
        cells = " | ".join(f"{costs[name]:.0f} ms" for name in names)
        lines.append(f"| {picture} | {cells} | {sum(costs.values()):.0f} ms |")
    sys.stdout.write("\n".join(lines) + "\n")


def _measure(site: RunningSite, size: tuple[int, int]) -> dict[str, float]:
    """Return the mean milliseconds of processor time of each request of an item."""
    event = site.verdict(size=size)
    for number in range(_ITEMS):
        site.open_review(site.again(event, f"{size[0]}-{number}"))
    costs: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, request: Callable[[], Result]) -> Result:
        started = time.process_time()
        result = request()
        costs[name] += 1000 * (time.process_time() - started) / _ITEMS
        return result

    for _ in range(_ITEMS):
        claimed = timed("claim", lambda: site.request("POST", "/reviews/claim", _MODERATOR)).json["review"]
        timed("page", lambda: site.request("GET", "/", _MODERATOR))
        for name, part in (
            ("overview", "picture"),
            ("view", "picture?part=strongest"),
            ("feature", "feature"),
        ):
            address = f"/reviews/{claimed}/{part}"
            timed(name, lambda address=address: site.request("GET", address, _MODERATOR))
        lease = site.value("SELECT lease FROM reviews WHERE id = %s", claimed)
        body = {"lease": str(lease), "outcome": "real"}
        address = f"/reviews/{claimed}/decide"
        timed("decision", lambda address=address, body=body: site.request("POST", address, _MODERATOR, body))
    return costs


if __name__ == "__main__":
    main()
