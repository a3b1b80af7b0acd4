"""The counters of a relay process; what it reads at each scrape is in `worker/relay/state.py`."""

from prometheus_client import ProcessCollector

from worker.telemetry.metrics import ENTRIES_SKIPPED, MetricSet

RELAY = MetricSet()

#: The loops of a relay.
LOOPS = ("intake", "outlet", "webhooks", "housekeeping")

RELAY_EVENTS = RELAY.counter(
    "dnf_relay_events_total",
    "Events of the verdict stream that this relay took; result is stored, or unstorable for one that the"
    " database refuses.",
    "result",
)
RELAY_REVIEWS = RELAY.counter(
    "dnf_relay_reviews_total",
    "Verdicts that people are to see; result is opened, or capped beyond DNF_REVIEW_DAILY_LIMIT.",
    "origin",
    "result",
)
RELAY_DECISIONS = RELAY.counter("dnf_relay_decisions_published_total", "Decisions that this relay published.")
RELAY_FAILURES = RELAY.counter(
    "dnf_relay_failures_total",
    "Rounds of a loop that failed; reason is unavailable (broker or database) or internal_error.",
    "loop",
    "reason",
)
WEBHOOK_ATTEMPTS = RELAY.counter(
    "dnf_webhook_attempts_total",
    "Attempts to deliver an event to an endpoint; outcome is delivered, retried or given_up.",
    "outcome",
)
WEBHOOK_ENDPOINTS_DISABLED = RELAY.gauge(
    "dnf_webhook_endpoints_disabled",
    "Endpoints that were disabled because of their answers; reason is gone (410) or failing (for five days).",
    "reason",
)
WEBHOOK_WAITING_SECONDS = RELAY.gauge(
    "dnf_webhook_waiting_seconds",
    "Seconds for which the oldest delivery to an active endpoint has been due; read every minute.",
)

for _loop in LOOPS:
    for _reason in ("unavailable", "internal_error"):
        RELAY_FAILURES.labels(_loop, _reason)
for _result in ("stored", "unstorable"):
    RELAY_EVENTS.labels(_result)
for _outcome in ("delivered", "retried", "given_up"):
    WEBHOOK_ATTEMPTS.labels(_outcome)
for _origin in ("uncertain", "audit"):
    for _result in ("opened", "capped"):
        RELAY_REVIEWS.labels(_origin, _result)
RELAY.registry.register(ENTRIES_SKIPPED)
ProcessCollector(registry=RELAY.registry)
