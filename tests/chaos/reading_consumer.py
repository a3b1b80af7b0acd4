"""A consumer that acknowledges COUNT events, reads one more and waits: `python -m ... GROUP NAME COUNT`."""

import sys
import time

from worker.client import Client

if __name__ == "__main__":
    group, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with Client() as client:
        for number, delivered in enumerate(client.verdicts(group, consumer=name)):
            sys.stdout.write(f"{delivered.event.check_id}\n")
            sys.stdout.flush()
            if number == count:
                time.sleep(600)  # it is killed here, between reading and acknowledging
            delivered.ack()
