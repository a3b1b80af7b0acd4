"""Submit a check with plain Celery and nothing of this project: submit_celery.py BUCKET KEY CHECK_ID."""  # noqa: INP001 - no package

import os
import sys

from celery import Celery

bucket, key, check_id = sys.argv[1:]
app = Celery(broker=os.environ["DNF_REDIS_URL"])
check = {"check_id": check_id, "bucket": bucket, "key": key}
app.send_task("check_image", args=[check], queue="image-checks")
sys.stdout.write(check_id + "\n")
