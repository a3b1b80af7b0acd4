"""A moderator without a browser: claims and decides until it is killed, and prints each confirmed decision.

`python -m tests.workers.decider NAME` reads the DNF_ variables.
"""

import sys
import time

from worker.database.database import Database
from worker.database.errors import DatabaseUnavailableError
from worker.reviews.decisions import decide
from worker.reviews.errors import ReviewError
from worker.reviews.moderators import Moderator, enrol
from worker.reviews.queue import Claimed, claim
from worker.settings import ReviewSettings, Settings

#: People take time, which leaves some for every part to be killed in.
PAUSE_SECONDS = 0.05


def main() -> None:
    """Decide for ever."""
    settings = Settings()
    database = Database.open(settings.database)
    with database.transaction() as tx:
        who = enrol(tx, sys.argv[1], sys.argv[1])
    while True:
        try:
            with database.transaction() as tx:
                held = claim(tx, settings.review, who)
        except DatabaseUnavailableError:
            continue
        if isinstance(held, Claimed):
            _decide(database, settings.review, who, held)
        time.sleep(PAUSE_SECONDS)


def _decide(database: Database, settings: ReviewSettings, who: Moderator, held: Claimed) -> None:
    """Ask until there is an answer, as a browser does whose request was lost."""
    while True:
        try:
            with database.transaction() as tx:
                decided = decide(tx, settings, held.review_id, held.lease, who, outcome="real")
        except DatabaseUnavailableError:
            continue
        except ReviewError as error:
            sys.stdout.write(f"refused {error.reason}\n")
        else:
            sys.stdout.write(f"confirmed {decided.id}\n")
        sys.stdout.flush()
        return


if __name__ == "__main__":
    main()
