"""Checks a second of 1, 2 and 4 workers on one Valkey: `python -m tests.chaos.scale_out FOLDER`.

Everything but the two networks is the product's own: queue, store, decoding, batches, publishing. A batch
sleeps for a fixed time, like a batch on a GPU, which leaves the cores free. So this measures whether the
queue and everything around it scale with the number of workers. With `--batch-seconds 0` it measures the
limit of the machine and one Valkey. Rounds are interleaved, since the machine may be shared.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

from tests.chaos.fleet import Fleet
from tests.conftest import settings_of
from worker.client import Client
from worker.contract.messages import ImageCheck
from worker.embedded.services import EmbeddedServices

BATCH = 8
#: Share of checks that is left out at either end, while the fleet fills and empties.
EDGE_SHARE = 0.1


@dataclass(frozen=True)
class Run:
    """One round of one fleet.

    `rate` is in checks per second by the server's clock; `broker_ms` and `broker_commands` are the server's
    CPU milliseconds and commands per check; `idle_share` (of a core) and `idle_commands` (per second) are
    what each idle worker costs the server.
    """

    workers: int
    batch_seconds: float
    checks: int
    rate: float
    broker_ms: float
    broker_commands: float
    idle_share: float
    idle_commands: float


def measure(
    services: EmbeddedServices, key: str, workers: int, *, batch_seconds: float, checks: int, folder: Path
) -> Run:
    """Measure a fleet of `workers` with `checks` checks on an empty database."""
    environment = {
        **services.environment(),
        "DNF_LOG_FORMAT": "json",
        "DNF_BATCH_SIZE": str(BATCH),
        "DNF_THREADS": str(2 * BATCH),
        "DNF_VERDICT_STREAM_MAX_LENGTH": "100000",
        "NULL_BATCH_SECONDS": str(batch_seconds),
    }
    settings = settings_of(environment)
    fleet = Fleet(folder, environment, workers)
    with redis.Redis.from_url(services.redis_url) as broker, Client(settings) as client:
        broker.flushall()
        fleet.start()
        try:
            before = _spent(broker)
            time.sleep(3.0)
            idle = _spent(broker)
            asked = [
                ImageCheck(bucket=services.bucket, key=key, check_id=f"check-{number}")
                for number in range(checks)
            ]
            ids = client.submit_many(asked)
            client.wait_for(*ids, timeout_seconds=300)
            counted = Counter(event.check_id for event in client.events(follow=False))
            after = _spent(broker)
            if set(counted.values()) != {1} or fleet.deaths:
                raise RuntimeError(f"a check has not exactly one event, or a worker died: {fleet.deaths}")
            moments = sorted(
                int(event.entry_id.partition("-")[0]) / 1000 for event in client.events(follow=False)
            )
        finally:
            fleet.stop()
    edge = int(checks * EDGE_SHARE)
    idle_seconds = idle[2] - before[2]
    return Run(
        workers=workers,
        batch_seconds=batch_seconds,
        checks=checks,
        rate=(checks - 2 * edge - 1) / (moments[-edge - 1] - moments[edge]),
        broker_ms=(after[0] - idle[0]) * 1000 / checks,
        broker_commands=(after[1] - idle[1]) / checks,
        idle_share=(idle[0] - before[0]) / idle_seconds / workers,
        idle_commands=(idle[1] - before[1]) / idle_seconds / workers,
    )


def table(runs: list[Run]) -> str:
    """Return the rounds as a table in Markdown: min, median and max of each size of fleet."""
    lines = [
        "| batch, s | workers | checks a second: min, median, max | to one worker | Valkey, ms a check |",
        "|---|---|---|---|---|",
    ]
    for batch_seconds in sorted({run.batch_seconds for run in runs}, reverse=True):
        one: float | None = None
        for workers in sorted({run.workers for run in runs}):
            same = [run for run in runs if (run.workers, run.batch_seconds) == (workers, batch_seconds)]
            if not same:
                continue
            rates = sorted(run.rate for run in same)
            middle = statistics.median(rates)
            one = one or middle
            lines.append(
                f"| {batch_seconds:g} | {workers} | {rates[0]:.1f}, {middle:.1f}, {rates[-1]:.1f} |"
                f" {middle / one:.2f} | {statistics.median(run.broker_ms for run in same):.2f} |"
            )
    return "\n".join(lines)


def plot(runs: list[Run], path: Path) -> None:
    """Draw every round's rate over the number of workers, as PNG."""
    from matplotlib.figure import Figure

    batch_times = sorted({run.batch_seconds for run in runs}, reverse=True)
    figure = Figure(figsize=(4.2 * len(batch_times), 3.4), dpi=100, layout="constrained")
    for axes, batch_seconds in zip(
        figure.subplots(1, len(batch_times), squeeze=False)[0], batch_times, strict=True
    ):
        same = [run for run in runs if run.batch_seconds == batch_seconds]
        sizes = sorted({run.workers for run in same})
        medians = [statistics.median(run.rate for run in same if run.workers == size) for size in sizes]
        axes.plot(
            sizes,
            [medians[0] * size / sizes[0] for size in sizes],
            "--",
            color="#5c6570",
            label="proportional",
        )
        axes.plot(sizes, medians, color="#0f7b4f", label="median")
        axes.plot(
            [run.workers for run in same], [run.rate for run in same], "o", color="#16191d", label="rounds"
        )
        axes.set_title(
            f"a batch of {BATCH} takes {batch_seconds:g} s" if batch_seconds else "a batch takes no time"
        )
        axes.set_xlabel("workers")
        axes.set_ylabel("checks a second")
        axes.set_xticks(sizes)
        axes.set_ylim(0)
        axes.legend(frameon=False)
    figure.savefig(path, pil_kwargs={"optimize": True})


def _spent(broker: redis.Redis) -> tuple[float, int, float]:
    said: dict[str, Any] = {**broker.info("cpu"), **broker.info("stats")}  # type: ignore[dict-item]
    seconds = float(said["used_cpu_sys"]) + float(said["used_cpu_user"])
    return seconds, int(said["total_commands_processed"]), time.monotonic()


def main(arguments: list[str] | None = None) -> None:
    """Run the rounds; write the table to the output, and scale-out.json and scale-out.png to the folder."""
    parser = argparse.ArgumentParser(description="Checks a second over the number of workers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-seconds", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--checks", type=int, default=80, help="of one worker, in a round")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    picture = (Path(__file__).parents[2] / "worker" / "demo" / "samples" / "real-cat.jpg").read_bytes()
    runs: list[Run] = []
    with EmbeddedServices(bucket="scale-out") as services, tempfile.TemporaryDirectory() as logs:
        services.seaweedfs.client().put_object(Bucket=services.bucket, Key="picture.jpg", Body=picture)
        for number in range(options.rounds):
            for batch_seconds in options.batch_seconds:
                for workers in options.workers if number % 2 == 0 else options.workers[::-1]:
                    run = measure(
                        services,
                        "picture.jpg",
                        workers,
                        batch_seconds=batch_seconds,
                        checks=options.checks * (workers if batch_seconds else 6),
                        folder=Path(logs),
                    )
                    runs.append(run)
                    sys.stderr.write(json.dumps(asdict(run)) + "\n")
    (options.folder / "scale-out.json").write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    plot(runs, options.folder / "scale-out.png")
    sys.stdout.write(table(runs) + "\n")


if __name__ == "__main__":
    main()
