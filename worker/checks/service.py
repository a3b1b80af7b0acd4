"""Service: what one worker process holds while it runs."""

import os
import socket
import time
from dataclasses import dataclass, field
from typing import Self

from PIL import Image

from detector.acceleration.memory import free_memory_after
from detector.bundle.files import resolve
from detector.bundle.thresholds import Thresholds
from detector.detector import Detector, Finding
from detector.images.memory import MemoryBudget
from detector.images.views import PreparedPicture
from worker.broker.connection import connect
from worker.broker.dead_letters import DeadLetters
from worker.broker.transport import UnacknowledgedMessages
from worker.broker.verdict_stream import VerdictStream
from worker.checks.attempts import Attempts
from worker.checks.batching import MicroBatcher
from worker.checks.shadow import Shadow
from worker.checks.turns import Turns
from worker.checks.verdict_cache import VerdictCache
from worker.contract.messages import Model
from worker.settings import Settings
from worker.storage import Storage
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import counted_batches

log = get_logger(__name__)


@dataclass(frozen=True)
class Service:
    """The parts that `check_image` works with."""

    settings: Settings
    #: The serving detector, warm.
    detector: Detector
    #: Batches the views of many checks into one forward pass of the detector.
    batcher: MicroBatcher[PreparedPicture, Finding]
    #: Fetches pictures.
    storage: Storage
    #: Takes the events.
    verdict_stream: VerdictStream
    #: Answers for bytes that were judged before; inactive unless the settings ask for it.
    verdict_cache: VerdictCache
    #: Counts the attempts at each check, and isolates a check after a lost one.
    attempts: Attempts
    #: Takes messages that cannot be carried out.
    dead_letters: DeadLetters
    #: The serving detector, as events name it.
    model: Model
    #: This process, as events and logs name it.
    name: str
    #: What all pictures that are decoded at one time may need.
    memory: MemoryBudget
    #: What the detectors can do, measured when they were warmed up.
    pictures_per_second: float
    #: A second detector for comparison; absent unless the settings name one.
    shadow: Shadow = field(default_factory=Shadow)
    #: When a picture is decoded and its views are cut.
    turns: Turns = field(default_factory=Turns)
    #: The messages that this process has taken and not acknowledged.
    unacknowledged: UnacknowledgedMessages = field(default_factory=UnacknowledgedMessages)

    @classmethod
    def start(
        cls, settings: Settings, unacknowledged: UnacknowledgedMessages, detector: Detector | None = None
    ) -> Self:
        """Load the detector unless one is given, warm it with a full batch, and connect the rest.

        Raises `BundleError`.
        """
        if detector is None:
            detector = _loaded(settings)
        log.info("warm_up_started", device=detector.device, batch_size=settings.batch_size)
        rate = detector.warm_up(settings.batch_size)
        log.info("warm_up_finished", pictures_per_second=round(rate, 2))
        shadow = Shadow.load(settings)
        # Pillow loads its formats with the first picture, which should not wait for that.
        Image.init()
        manifest = detector.bundle.manifest
        return cls(
            settings=settings,
            detector=detector,
            batcher=MicroBatcher(
                counted_batches(detector.examine),
                max_batch=settings.batch_size,
                wait_seconds=settings.batch_wait_seconds,
                out_of_memory=free_memory_after,
            ),
            storage=Storage(settings.storage),
            verdict_stream=VerdictStream.connect(settings),
            verdict_cache=VerdictCache.connect(settings, detector.bundle.digest),
            attempts=Attempts(
                connect(settings.broker),
                deadline_seconds=settings.check_deadline_seconds,
                max_attempts=settings.max_attempts,
                ttl_seconds=settings.publish_once_ttl_seconds,
            ),
            dead_letters=DeadLetters.connect(settings),
            model=Model(name=manifest.name, version=manifest.version, digest=detector.bundle.digest),
            name=f"{socket.gethostname()}:{os.getpid()}",
            memory=MemoryBudget(settings.decode_memory_bytes),
            pictures_per_second=1 / (1 / rate + shadow.seconds_per_picture),
            shadow=shadow,
            unacknowledged=unacknowledged,
        )

    @property
    def thresholds(self) -> Thresholds:
        """The serving detector's thresholds."""
        return self.detector.bundle.manifest.thresholds

    def stop(self) -> None:
        """Finish what the batcher holds and close the connections."""
        self.batcher.close()
        self.shadow.close()
        self.verdict_stream.close()
        self.verdict_cache.close()
        self.attempts.close()
        self.dead_letters.close()


def _loaded(settings: Settings) -> Detector:
    """Load the serving detector, and log each step: its bundle may come from far, its libraries are large."""
    began = time.monotonic()
    log.info("bundle_resolve_started", bundle=settings.bundle)
    bundle = resolve(settings.bundle, digest=settings.bundle_digest)
    log.info("model_load_started", digest=bundle.digest, seconds=round(time.monotonic() - began, 2))
    began = time.monotonic()
    detector = Detector.load(bundle, device=settings.device, dtype=settings.dtype, compiled=settings.compile)
    seconds = round(time.monotonic() - began, 2)
    log.info("networks_loaded", device=detector.device, layers=detector.acceleration, seconds=seconds)
    return detector
