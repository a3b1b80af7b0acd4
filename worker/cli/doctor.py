"""dnf-worker doctor: diagnose settings, services and hardware before workers rely on them."""

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

import click
from rich.table import Table

from detector.terminal import Console, echo_json, shown
from worker.cli.errors import current_settings
from worker.telemetry.logs import SecretMask

if TYPE_CHECKING:
    from worker.operations.doctor.diagnosis import Diagnosis, Outcome

_COLOURS: "dict[Outcome, str]" = {"ok": "green", "warning": "yellow", "fault": "red"}


@click.command(epilog="\b\nExample:\n  dnf-worker doctor --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(*, as_json: bool) -> None:
    """Diagnose settings, broker, object store and detector: what is wrong, and how to fix it.

    Exit status: 0 without a fault, even with warnings; 1 with a fault; 2 for wrong usage.
    """
    from worker.operations.doctor import diagnose

    settings = current_settings()
    mask = SecretMask(settings.secrets())
    progress = Console(stderr=True)
    diagnoses: list[Diagnosis] = []
    with progress.status("Diagnosing…") if progress.is_terminal else nullcontext() as status:
        for diagnosis in diagnose(settings):
            # A network error may quote an address with its password.
            diagnoses.append(diagnosis.model_copy(update={"problem": mask.masked(diagnosis.problem)}))
            if status:
                status.update(f"{len(diagnoses)} diagnosed, last {shown(diagnosis.name)}")
    worst = _worst(diagnoses)
    if as_json:
        report = {"outcome": worst, "diagnoses": [diagnosis.model_dump() for diagnosis in diagnoses]}
        echo_json(report, indent=2)
    else:
        Console().print(_table(diagnoses))
    sys.exit(int(worst == "fault"))


def _worst(diagnoses: "list[Diagnosis]") -> "Outcome":
    outcomes = {diagnosis.outcome for diagnosis in diagnoses}
    if "fault" in outcomes:
        return "fault"
    return "warning" if "warning" in outcomes else "ok"


def _table(diagnoses: "list[Diagnosis]") -> Table:
    table = Table("Diagnosis", "Outcome", "Observed", "Problem and remedy")
    for diagnosis in diagnoses:
        colour = _COLOURS[diagnosis.outcome]
        table.add_row(
            shown(diagnosis.name),
            f"[{colour}]{diagnosis.outcome}[/]",
            shown(diagnosis.observed),
            shown(f"{diagnosis.problem} {diagnosis.remedy}".strip()),
        )
    return table
