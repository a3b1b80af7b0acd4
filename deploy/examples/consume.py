"""Consume events as a member of a group: consume.py GROUP COUNT (DNF_REDIS_URL names the broker)."""  # noqa: INP001 - no package

import sys
from itertools import islice

from worker.client import Client

group, count = sys.argv[1], int(sys.argv[2])
with Client() as client:
    for delivered in islice(client.verdicts(group), count):
        sys.stdout.write(delivered.event.raw + "\n")
        delivered.ack()  # until then another member of the group may claim it
