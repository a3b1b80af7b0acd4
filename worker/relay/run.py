"""One relay process, from its start to its end."""

import threading
from collections.abc import Callable
from contextlib import ExitStack

from worker.broker.connection import connect
from worker.broker.decision_stream import DecisionStream
from worker.broker.faults import verify_trust
from worker.broker.verdict_stream import VerdictStream
from worker.database.database import Database
from worker.relay.housekeeping import Housekeeping
from worker.relay.intake import Intake
from worker.relay.loops import Loop
from worker.relay.outlet import Outlet
from worker.relay.state import RelayState
from worker.settings import Settings
from worker.telemetry.http import Answer, Endpoints
from worker.telemetry.logs import get_logger
from worker.telemetry.relay_metrics import RELAY
from worker.webhooks.sender import Sender

log = get_logger(__name__)

# A turn takes seconds at most, also while database and broker are away.
_STALLED_SECONDS = 120.0


def run_relay(settings: Settings, stop: threading.Event) -> None:
    """Relay until `stop` is set. Any number of relays may run at once.

    Raises `BrokerRefusedError`, `DatabaseUnavailableError`, `EndpointsUnavailableError` and `SchemaError`.
    """
    with ExitStack() as stack:
        verify_trust(settings.broker)
        database = stack.enter_context(Database.open(settings.database))
        verdicts = VerdictStream.connect(settings, client=connect(settings.broker, within_seconds=10))
        stack.callback(verdicts.close)
        decisions = DecisionStream.connect(settings)
        stack.callback(decisions.close)
        intake = Intake(verdicts, database, settings.review)
        sender = stack.enter_context(Sender(settings.webhooks, database))
        loops = [
            Loop("intake", intake.turn, failed=intake.failed),
            Loop("outlet", Outlet(decisions, database).turn),
            Loop("webhooks", sender.turn),
            Loop("housekeeping", Housekeeping(decisions, database, settings).turn),
        ]
        if settings.http_port:
            state = RelayState(database, stack.enter_context(connect(settings.broker, retries=0)), settings)
            RELAY.registry.register(state)
            stack.callback(RELAY.registry.unregister, state)
            stack.enter_context(
                Endpoints(settings.http_host, settings.http_port, RELAY.registry, _probes(loops, state))
            )
        for loop in loops:
            stack.enter_context(loop)
        log.info("relay_ready", loops=[loop.name for loop in loops])
        stop.wait()
        log.info("relay_stopping")
    log.info("relay_stopped")


def _probes(loops: list[Loop], state: RelayState) -> dict[str, Callable[[], Answer]]:
    def live() -> Answer:
        stalled = [loop.name for loop in loops if not loop.alive or loop.seconds_in_turn > _STALLED_SECONDS]
        reason = f"stalled: {', '.join(stalled)}" if stalled else "every loop makes progress"
        return Answer(ok=not stalled, reason=reason, figures={"faults": _faults(loops)})

    def ready() -> Answer:
        answers = state.answers()
        reason = "database and broker answer" if answers else f"no answer: {state.error}"
        return Answer(ok=answers, reason=reason, figures={"faults": _faults(loops)})

    return {"/livez": live, "/readyz": ready, "/startupz": live}


def _faults(loops: list[Loop]) -> dict[str, str]:
    return {loop.name: loop.fault for loop in loops if loop.fault}
