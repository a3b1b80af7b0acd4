"""Submit a check of an object in S3: submit.py BUCKET KEY CHECK_ID (DNF_REDIS_URL names the broker)."""  # noqa: INP001 - no package

import sys

from worker.client import Client

bucket, key, check_id = sys.argv[1:]
with Client() as client:
    sys.stdout.write(client.submit(bucket, key, check_id=check_id) + "\n")
