"""Requests for objects: botocore addresses, signs and sends them, without the rest of its calls.

A call of boto3 costs three times as much as the request that it makes: rules, events and parsing for every
operation of S3. Here the rules run once for each bucket.
"""

import random
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from botocore.awsrequest import AWSRequest
from botocore.endpoint import convert_to_response_dict
from botocore.exceptions import BotoCoreError, ClientError
from botocore.hooks import first_non_none_response
from botocore.httpchecksum import handle_checksum_body
from botocore.parsers import ResponseParserFactory
from botocore.retries.standard import RetryContext, StandardRetryConditions
from botocore.utils import percent_encode, percent_encode_sequence

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse
    from botocore.signers import RequestSigner
    from types_boto3_s3.client import S3Client

Operation = Literal["GetObject", "PutObject"]

ATTEMPTS = 2
# Stands for the key in the request whose address is noted.
_KEY = "k"
_FIRST_ERROR_STATUS = 300

_noting: ContextVar[bool] = ContextVar("noting", default=False)


class _NotedError(Exception):
    """A request as it was before it was signed."""

    def __init__(self, request: AWSRequest, signer: "RequestSigner") -> None:
        super().__init__()
        self.request, self.signer = request, signer


@dataclass(frozen=True)
class _Template:
    """What the requests of one operation on one bucket have in common."""

    #: The bucket's, up to the key.
    url: str
    headers: Mapping[str, str]
    #: How the request is signed, as botocore's signer reads it.
    context: Mapping[str, Any]
    signer: "RequestSigner"


class Requests:
    """Requests of a client for objects, with its credentials, address, signature, connections and errors."""

    def __init__(self, client: "S3Client") -> None:
        self._client = client
        # botocore has no public way to its connections; a test holds this one.
        self._connections = client._endpoint.http_session  # type: ignore[attr-defined] # noqa: SLF001
        self._parser = ResponseParserFactory().create_parser("rest-xml")
        self._retried = StandardRetryConditions(ATTEMPTS)
        self._templates: dict[tuple[Operation, str], _Template] = {}
        client.meta.events.register("before-sign.s3", _note)

    def get(self, bucket: str, key: str, *, version_id: str | None = None, etag: str | None = None) -> Any:
        """Return botocore's reply to GetObject: `headers`, and a `body` that verifies length and checksum.

        Raises BotoCoreError, ClientError, urllib3's HTTPError and OSError.
        """
        query = f"?{percent_encode_sequence({'versionId': version_id})}" if version_id else ""
        headers = {"If-Match": etag} if etag else {}
        return self._sent("GetObject", bucket, percent_encode(key, safe="/~") + query, headers)

    def put(self, bucket: str, key: str, data: bytes, headers: Mapping[str, str]) -> None:
        """Store an object. Raises BotoCoreError, ClientError, urllib3's HTTPError and OSError."""
        self._sent("PutObject", bucket, percent_encode(key, safe="/~"), headers, data)

    def _sent(
        self, operation: Operation, bucket: str, path: str, headers: Mapping[str, str], data: bytes = b""
    ) -> Any:
        """Send a request, and once more after a fault that botocore's standard mode would retry."""
        template = self._template(operation, bucket)
        model = self._client.meta.service_model.operation_model(operation)
        for attempt in range(1, ATTEMPTS + 1):
            request = AWSRequest(
                "GET" if operation == "GetObject" else "PUT",
                template.url + path,
                {**template.headers, **headers},
                data,
                stream_output=model.has_streaming_output,
            )
            # What signs and sends writes to it.
            request.context = {**template.context}
            template.signer.sign(operation, request)
            response: Any = None
            parsed: Any = None
            fault: BotoCoreError | ClientError
            try:
                response = self._response(operation, request)
                reply = convert_to_response_dict(response, model)
                if response.status_code < _FIRST_ERROR_STATUS:
                    handle_checksum_body(response, reply, request.context, model)
                    return reply
                parsed = self._parser.parse(reply, model.output_shape)  # type: ignore[arg-type] # it has one
                fault = ClientError(parsed, operation)
            except BotoCoreError as error:
                fault = error
            met = RetryContext(attempt, model, parsed, response, None if parsed else fault)
            if not self._retried.is_retryable(met):
                raise fault
            time.sleep(random.random())
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _response(self, operation: Operation, request: AWSRequest) -> "AWSResponse":
        prepared = request.prepare()
        events = self._client.meta.events
        answered = first_non_none_response(events.emit(f"before-send.s3.{operation}", request=prepared))
        response: AWSResponse = answered or self._connections.send(prepared)
        return response

    def _template(self, operation: Operation, bucket: str) -> _Template:
        """Return what botocore's own call makes of its rules, up to the signature."""
        known = self._templates.get((operation, bucket))
        if known:
            return known
        token = _noting.set(True)
        try:
            if operation == "GetObject":
                self._client.get_object(Bucket=bucket, Key=_KEY)
            else:
                self._client.put_object(Bucket=bucket, Key=_KEY)
        except _NotedError as noted:
            request, signer = noted.request, noted.signer
        finally:
            _noting.reset(token)
        names = {"user-agent", "x-amz-checksum-mode"}
        headers = {name: _text(value) for name, value in request.headers.items() if name.lower() in names}
        context = dict(request.context)
        if operation == "PutObject":
            context.pop("checksum", None)  # of the empty body
        template = _Template(str(request.url).removesuffix(_KEY), headers, context, signer)
        self._templates[operation, bucket] = template
        return template


def _note(request: AWSRequest, request_signer: "RequestSigner", **_: Any) -> None:
    if _noting.get():
        raise _NotedError(request, request_signer)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
