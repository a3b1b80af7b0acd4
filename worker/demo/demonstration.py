"""The demonstration: broker, object store and worker on this machine judge sample pictures."""

import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from os import environ
from pathlib import Path
from types import FrameType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from detector.terminal import INTERRUPTED, Console, shown
from worker.broker.verdict_stream import Event, VerdictStream
from worker.client import Client
from worker.contract.messages import Rejection, Verdict
from worker.demo.contact_sheet import (
    NOTE,
    ContactSheet,
    JudgedPicture,
    Outline,
    RejectedUpload,
    render_html,
)
from worker.demo.samples import BadUpload, Sample, bad_uploads, load_samples
from worker.demo.tables import print_tables
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import EmbeddedServiceError
from worker.settings import Settings

#: For so long the worker may log nothing: a slow machine has all the time that it makes progress in.
QUIET_SECONDS = 180.0

# A page on a port of its own for this machine alone, and enough audits that there is one among a few samples.
_PEOPLE = {
    "DNF_WEB_HOST": "127.0.0.1",
    "DNF_WEB_PORT": "0",
    "DNF_REVIEW_AUDIT_SHARE_REAL": "0.5",
    "DNF_REVIEW_AUDIT_SHARE_GENERATED": "0.5",
}


class DemoFailedError(RuntimeError):
    """The demonstration failed; the message says why."""


def run_demo(*, keep: bool, out: Path, bundle: str) -> int:
    """Run the demonstration and return its exit status: 0, 1 after a failure, 130 after an interrupt.

    The contact sheet and the worker's log are written to the folder `out`; `bundle` names the detector; with
    `keep` the services, the worker and the review page run until Ctrl-C.
    """
    console = Console()
    try:
        with _interruptible() as interruption:
            _demonstrate(console, interruption, keep=keep, out=out, bundle=bundle)
            interruption.check()
    except KeyboardInterrupt:
        console.print("Stopped. Nothing is left running.")
        return 0 if keep else INTERRUPTED
    except (DemoFailedError, EmbeddedServiceError) as error:
        console.print(f"[bold red]The demonstration failed.[/] {shown(str(error), newlines=True)}")
        return 1
    return 0


@dataclass(frozen=True)
class _Upload:
    """An object of the store: a sample or a bad upload."""

    key: str
    content: Sample | BadUpload

    @property
    def data(self) -> bytes | None:
        return self.content.read() if isinstance(self.content, Sample) else self.content.data


def _demonstrate(
    console: Console, interruption: "_Interruption", *, keep: bool, out: Path, bundle: str
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    log = out / "worker.log"
    log.unlink(missing_ok=True)
    # The page for moderators is of interest only to who stays.
    people = keep and find_spec("fastapi") is not None
    with EmbeddedServices(database=people) as services:
        console.print(f"Valkey at {services.redis_url}, SeaweedFS at {services.s3_endpoint}")
        # An absolute path, so that the printed commands work in any directory.
        bundle = str(Path(bundle).resolve()) if Path(bundle).is_dir() else bundle
        variables = {**services.environment(), "DNF_BUNDLE": bundle, "DNF_LOG_FORMAT": "json"}
        # A pin of the environment is that of another bundle.
        variables["DNF_BUNDLE_DIGEST"] = ""
        if people:
            variables |= _PEOPLE
        with _environment(variables), _worker(log, interruption) as worker:
            sheet = _judge_samples(console, services, worker)
            print_tables(console, sheet)
            (out / "verdicts.html").write_text(render_html(sheet), encoding="utf-8")
            console.print(
                f"Contact sheet: {out / 'verdicts.html'}\nWorker's log: {log}\n{NOTE}",
                soft_wrap=True,
                highlight=False,
            )
            if people:
                with _people(out, interruption) as page:
                    _keep_running(console, [worker, *page], variables, _print_links(console, page))
            elif keep:
                _keep_running(console, [worker], variables)


def _judge_samples(console: Console, services: EmbeddedServices, worker: "_Worker") -> ContactSheet:
    """Upload and enqueue everything; return the outcomes in the order of the uploads."""
    settings = Settings()
    store = services.seaweedfs.client()
    contents: list[Sample | BadUpload] = [*load_samples(), *bad_uploads()]
    uploads = [_Upload(f"demo/{content.file}", content) for content in contents]
    with _progress(console) as progress, Client(settings) as client:
        uploading = progress.add_task("Uploading", total=len(uploads))
        for upload in uploads:
            if upload.data is not None:
                store.put_object(Bucket=services.bucket, Key=upload.key, Body=upload.data)
            progress.advance(uploading)
        loading = progress.add_task("Loading the model", total=1)
        _wait_until_ready(worker)
        progress.advance(loading)
        # Enqueued only now, so that the time in the queue excludes loading the model.
        judging = progress.add_task("Verdicts", total=len(uploads))
        submitted = {client.submit(services.bucket, upload.key): upload for upload in uploads}
        events = _receive(settings, worker, set(submitted), lambda: progress.advance(judging))
    return _sheet(client, [(upload, events[check_id]) for check_id, upload in submitted.items()])


def _receive(
    settings: Settings, worker: "_Worker", awaited: set[str], advance: Callable[[], None]
) -> dict[str, Event]:
    """Return the event of each awaited check id; call `advance` for each one."""
    results = VerdictStream.connect(settings)
    received: dict[str, Event] = {}
    progress = Progressing(worker.process)
    for event in results.tail(block_seconds=0.5):
        if event and event.check_id in awaited and event.check_id not in received:
            received[event.check_id] = event
            advance()
        if len(received) == len(awaited):
            break
        worker.check()
        progress.check(f"{len(received)} of {len(awaited)} verdicts had come")
    results.close()
    return received


def _sheet(client: Client, received: list[tuple[_Upload, Event]]) -> ContactSheet:
    """Return the contact sheet; model and thresholds are those of the verdicts."""
    judged, rejected = [], []
    model, thresholds = "", None
    for upload, event in received:
        content, data = upload.content, event.envelope.data
        if isinstance(data, Rejection):
            rejected.append(RejectedUpload(f"{content.file} ({content.title})", data.reason, data.detail))
            continue
        model, thresholds = f"{data.model.name} {data.model.version}", data.thresholds
        sample = content if isinstance(content, Sample) else None
        judged.append(
            JudgedPicture(
                title=content.title,
                picture=upload.data or b"",
                thumbnail=client.thumbnail(event),
                verdict=data.verdict,
                score=data.score,
                milliseconds=data.durations_ms["total"],
                truth=sample.truth if sample else None,
                origin=sample.family if sample else "",
                credit=f"{sample.author}, {sample.licence}" if sample else "",
                outline=_outline(data),
                stages={name: value for name, value in data.durations_ms.items() if name != "total"},
            )
        )
    if thresholds is None:
        raise DemoFailedError("No picture was judged, every upload was rejected.")
    return ContactSheet(judged, rejected, model, thresholds)


def _outline(data: Verdict) -> Outline | None:
    if data.strongest_view is None:
        return None
    return Outline(data.picture.width, data.picture.height, data.views[data.strongest_view])


def _wait_until_ready(worker: "_Worker") -> None:
    progress = Progressing(worker.process)
    while '"worker_ready"' not in worker.process.log.read_text(encoding="utf-8", errors="replace"):
        worker.check()
        progress.check("the model was not loaded yet")
        time.sleep(0.1)


class Progressing:
    """A limit that starts anew with each line of a worker's log."""

    def __init__(self, process: GuardedProcess, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._process = process
        self._quiet_seconds = quiet_seconds
        self._bytes = 0
        self._latest = time.monotonic()

    def check(self, state: str) -> None:
        """Raise `DemoFailedError`, with the state and a remedy, after `quiet_seconds` without a new line."""
        size = self._process.log.stat().st_size
        if size > self._bytes:
            self._bytes, self._latest = size, time.monotonic()
        if time.monotonic() - self._latest > self._quiet_seconds:
            raise DemoFailedError(
                f"The worker has logged nothing for {self._quiet_seconds:.0f} seconds; {state}. The machine"
                " may be too busy or short of memory: end other programs, or set DNF_BATCH_SIZE=1 for a"
                f" shorter warm-up, and start again.\nThe end of its log:\n{self._process.tail(15)}"
            )


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process and its children while the block runs."""
    before = {name: environ.get(name) for name in variables}
    environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del environ[name]
            else:
                environ[name] = value


@dataclass(frozen=True)
class _Worker:
    """A process of the service; `check` tells whether waiting for it still makes sense."""

    process: GuardedProcess
    interruption: "_Interruption"
    name: str = "worker"

    def check(self) -> None:
        """Raise KeyboardInterrupt after an interrupt, `DemoFailedError` when the process has ended."""
        self.interruption.check()
        if not self.process.alive:
            status = self.process.popen.returncode
            raise DemoFailedError(f"The {self.name} ended with status {status}. {self.log_tail()}")

    def log_tail(self) -> str:
        """Return the last lines of the worker's log."""
        return f"The end of its log:\n{self.process.tail(15)}"


@contextmanager
def _worker(log: Path, interruption: "_Interruption") -> Iterator[_Worker]:
    """Run a worker process while the block runs."""
    process = GuardedProcess([sys.executable, "-m", "worker.cli", "run"], log=log)
    try:
        yield _Worker(process, interruption)
    finally:
        process.stop(grace_seconds=15.0)


@contextmanager
def _people(out: Path, interruption: "_Interruption") -> Iterator[list[_Worker]]:
    """Run relay and review page while the block runs."""
    commands = {"relay": ["relay"], "web": ["web", "--link", "senior+admin", "--link", "moderator"]}
    with ExitStack() as cleanup:
        running = []
        for name, arguments in commands.items():
            log = out / f"{name}.log"
            log.unlink(missing_ok=True)
            process = GuardedProcess([sys.executable, "-m", "worker.cli", *arguments], log=log)
            cleanup.callback(process.stop, grace_seconds=10.0)
            running.append(_Worker(process, interruption, name))
        yield running


def _print_links(console: Console, processes: Sequence[_Worker]) -> str:
    """Wait until the review page is served, print its one-time links and return its origin."""
    page = processes[-1]
    progress = Progressing(page.process)
    while "startup complete" not in (log := page.process.log.read_text(encoding="utf-8", errors="replace")):
        page.check()
        progress.check("the review page was not served yet")
        time.sleep(0.1)
    console.print(
        "\nThe review page, for two people: open the second link in a private window.\n", style="bold"
    )
    origin = ""
    for role, link in re.findall(r"^([a-z+]+): (http://\S+)$", log, re.MULTILINE):
        console.print(f"{role}: {link}", soft_wrap=True, markup=False, highlight=False)
        origin = link.partition("/link?")[0]
    return origin


def _keep_running(
    console: Console, processes: Sequence[_Worker], variables: Mapping[str, str], origin: str = ""
) -> None:
    """Print how to submit pictures from another terminal and wait for Ctrl-C; `origin` is the HTTP API's."""
    command = shlex.quote(str(Path(sys.executable).with_name("dnf-worker")))
    console.print("\nThe services and the worker run until Ctrl-C. In another terminal:\n", style="bold")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines += [f"{command} submit --wait PICTURE.jpg", f"{command} verdicts --follow"]
    if origin:
        header = '-H "Authorization: Bearer $TOKEN"'
        lines += [
            f"TOKEN=$({command} tokens create demo --scope checks:write --scope checks:read)",
            f"curl -fsS {origin}/v1/checks {header} -F picture=@PICTURE.jpg",
        ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print("\nThe keys are valid only for these throw-away services.")
    while True:
        for process in processes:
            process.check()
        time.sleep(0.2)


class _Interruption:
    """The handler of Ctrl-C and SIGTERM: the first one unwinds the demonstration, later ones are ignored.

    An exception raised by a signal handler is lost inside a finaliser, so the signal is also remembered, and
    checked at every step of waiting.
    """

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._received = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self._received = True
        for number in self.numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal was received."""
        if self._received:
            raise KeyboardInterrupt


@contextmanager
def _interruptible() -> Iterator[_Interruption]:
    """Handle SIGINT, SIGTERM and SIGHUP while the block runs."""
    interruption = _Interruption()
    before = {number: signal.signal(number, interruption) for number in interruption.numbers}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
