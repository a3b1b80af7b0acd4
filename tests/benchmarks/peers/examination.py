"""What every peer does with an upload: boto3 fetches it, Pillow decodes it, the detector examines it."""

import os
import threading
from io import BytesIO

import boto3
import numpy as np
from botocore.config import Config
from PIL import Image

from detector.bundle.manifest import Preprocessing
from detector.detector import Detector, Finding
from detector.images.views import PreparedPicture
from tests.null_detector import NullDetector


class Examination:
    """The detector of `PEER_BUNDLE`, the null detector where that is not set; safe for threads."""

    def __init__(self) -> None:
        bundle = os.environ.get("PEER_BUNDLE")
        self.detector = (
            Detector.load(bundle) if bundle else NullDetector(Preprocessing(mode="crop", size=128, views=9))
        )
        self.detector.warm_up(1)
        self._one_at_a_time = threading.Lock()
        self._s3 = boto3.client(
            "s3",
            endpoint_url=os.environ["DNF_S3_ENDPOINT_URL"],
            region_name=os.environ["DNF_S3_REGION"],
            aws_access_key_id=os.environ["DNF_S3_ACCESS_KEY_ID"],
            aws_secret_access_key=os.environ["DNF_S3_SECRET_ACCESS_KEY"],
            config=Config(max_pool_connections=32),
        )

    def prepared(self, bucket: str, key: str) -> PreparedPicture:
        """Fetch and decode an upload and cut its views."""
        data = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return self.detector.prepare(np.asarray(Image.open(BytesIO(data)).convert("RGB")))

    def examine(self, pictures: list[PreparedPicture]) -> list[Finding]:
        """Examine a batch; `Detector.examine` is for one thread at a time."""
        with self._one_at_a_time:
            return self.detector.examine(pictures)
