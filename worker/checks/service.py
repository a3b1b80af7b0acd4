"""What one worker process holds while it runs: the detector, its batcher, the store and the results."""

import os
import socket
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.acceleration.memory import free_memory_after
from detector.detector import Detector, Finding
from worker.broker.consumer import ChecksInWork
from worker.broker.dead_letters import DeadLetters
from worker.broker.verdict_stream import Results, connect
from worker.checks.attempts import Attempts
from worker.checks.batching import MicroBatcher
from worker.checks.shadow import Shadow
from worker.checks.verdict_cache import VerdictCache
from worker.contract.messages import Model
from worker.settings import Settings
from worker.storage import Storage
from worker.telemetry.metrics import counted_batches


@dataclass(frozen=True)
class Service:
    """The parts that `check_image` works with; `name` tells this process from others in events and logs."""

    settings: Settings
    detector: Detector
    batcher: MicroBatcher[NDArray[np.float32], Finding]
    storage: Storage
    results: Results
    verdict_cache: VerdictCache
    attempts: Attempts
    dead_letters: DeadLetters
    model: Model
    name: str
    shadow: Shadow = field(default_factory=Shadow)
    in_work: ChecksInWork = field(default_factory=ChecksInWork)

    @classmethod
    def start(cls, settings: Settings, detector: Detector | None = None) -> Self:
        """Load the detector, if none is given, warm it with a full batch and connect the rest.

        Raises `BundleError`.
        """
        detector = detector or Detector.load(settings.bundle, device=settings.device, dtype=settings.dtype)
        detector.warm_up(settings.batch_size)
        # Pillow loads its formats at the first picture; that one should not wait for it.
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
            storage=Storage(settings),
            results=Results(settings),
            verdict_cache=VerdictCache.connect(settings, detector.bundle.digest),
            attempts=Attempts(connect(settings), settings),
            dead_letters=DeadLetters.connect(settings),
            model=Model(name=manifest.name, version=manifest.version, digest=detector.bundle.digest),
            name=f"{socket.gethostname()}:{os.getpid()}",
            shadow=Shadow.load(settings),
        )

    def stop(self) -> None:
        """Finish what the batcher holds and close the connections."""
        self.batcher.close()
        self.shadow.close()
        self.results.close()
        self.verdict_cache.close()
        self.attempts.close()
        self.dead_letters.close()
