"""A running review page on real services, for the tests that send it requests or open it in a browser."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from PIL import Image

from tests.conftest import MakePicture, settings_of
from tests.served_page import JSON, Caller, Reply, served
from tests.verdicts import verdict_event
from worker.broker.connection import connect
from worker.broker.keys import thumbnail as thumbnail_key
from worker.contract.messages import PictureFacts, Thumbnail, VerdictEvent, ViewScore
from worker.database.database import Database
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST
from worker.reviews.intake import open_review, store
from worker.settings import Settings
from worker.web.identity import OneTimeLinks


def person(name: str, *groups: str) -> dict[str, str]:
    """Return the headers with which a trusted proxy names a person."""
    return {"X-Forwarded-User": name, "X-Forwarded-Groups": ",".join(groups or ("moderator",))}


@dataclass
class RunningSite:
    """A page that is served, with its database, store and broker."""

    caller: Caller
    settings: Settings
    database: Database
    services: EmbeddedServices
    make_picture: MakePicture
    #: The bytes of each picture, by check id.
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The page's origin."""
        return f"http://{HOST}:{self.caller.port}"

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        same_origin: bool = True,
    ) -> Reply:
        """Send a request, a changing one as the page itself does, and return its answer."""
        if method == "GET":
            return self.caller.get(path, headers=headers)
        own = {"Origin": self.url, "Sec-Fetch-Site": "same-origin"} if same_origin else {}
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        return self.caller.call(method, path, raw=data, headers={**JSON, **own, **(headers or {})})

    def store_picture(self, key: str, data: bytes) -> None:
        """Put an object into the store."""
        self.services.seaweedfs.client().put_object(Bucket=self.services.bucket, Key=key, Body=data)

    def verdict(
        self,
        check_id: str | None = None,
        *,
        score: float = 0.5,
        size: tuple[int, int] = (320, 240),
        picture: bytes | None = None,
        views: bool = True,
        feature: bytes | None = None,
        **data: Any,
    ) -> VerdictEvent:
        """Return the verdict of a picture that is in the store, with its thumbnail in Redis.

        Views, picture and feature are made up unless they are given.
        """
        check_id = check_id or f"check-{uuid4()}"
        picture = picture or self.make_picture(len(self.pictures), size)
        self.pictures[check_id] = picture
        key = f"pictures/{check_id}.jpg"
        self.store_picture(key, picture)
        width, height = Image.open(io.BytesIO(picture)).size
        feature = feature or self.make_picture(7, (128, 128))
        if views:
            data = {"views": _views(width, height, score), "strongest_view": 3} | data
        event = verdict_event(
            check_id,
            score=score,
            bucket=self.services.bucket,
            key=key,
            picture=PictureFacts(
                sha256=hashlib.sha256(picture).hexdigest(),
                width=width,
                height=height,
                format="JPEG",
                bytes=len(picture),
            ),
            thumbnail=Thumbnail(
                content_type="image/jpeg",
                redis_key="set below",
                width=128,
                height=128,
                sha256=hashlib.sha256(feature).hexdigest(),
            ),
            **data,
        )
        with connect(self.settings.broker) as redis:
            redis.set(thumbnail_key(self.settings.verdict_stream, event.id), feature)
        return event

    def again(self, event: VerdictEvent, check_id: str) -> VerdictEvent:
        """Return the verdict of another check of the same object."""
        new = event.model_copy(
            update={
                "id": hashlib.sha256(check_id.encode()).hexdigest(),
                "data": event.data.model_copy(update={"check_id": check_id}),
            }
        )
        with connect(self.settings.broker) as redis:
            old = thumbnail_key(self.settings.verdict_stream, event.id)
            redis.copy(old, thumbnail_key(self.settings.verdict_stream, new.id))
        return new

    def open_review(
        self, event: VerdictEvent | None = None, *, origin: str = "uncertain", **data: Any
    ) -> UUID:
        """Open the review of a verdict, by default of a new uncertain one, and return its id."""
        event = event or self.verdict(**data)
        with self.database.transaction() as tx:
            review_id = open_review(
                tx,
                self.settings.review,
                event,
                event.model_dump_json(),
                origin=origin,
                probability=0.05 if origin == "audit" else 1.0,
            )
        assert review_id is not None
        return review_id

    def store_event(self, event: VerdictEvent) -> None:
        """Keep an event as the relay does."""
        with self.database.transaction() as tx:
            store(tx, self.settings.review, event, event.model_dump_json(), key=b"tests")

    def outbox(self) -> list[dict[str, Any]]:
        """Return the decisions that are to be published, oldest first."""
        with self.database.transaction() as tx:
            return [json.loads(row["event"]) for row in tx.execute("SELECT event FROM outbox ORDER BY id")]

    def value(self, query: str, *values: Any) -> Any:
        """Return the one value of a query."""
        with self.database.transaction() as tx:
            row = tx.execute(query, values).fetchone()
        assert row is not None
        return next(iter(row.values()))


#: Starts a page with these settings.
StartSite = Callable[..., RunningSite]


@contextmanager
def sites(
    services: EmbeddedServices, environment: Mapping[str, str], make_picture: MakePicture
) -> Iterator[StartSite]:
    """Provide a function that serves the page until the block ends."""
    with ExitStack() as cleanup:

        def start(*, links: OneTimeLinks | None = None, **changes: Any) -> RunningSite:
            trusted = {} if links else {"web_trusted_proxies": ("127.0.0.1",)}
            # Second opinions only where a test asks for them.
            settings = settings_of(environment, **{"review_double_share": 0, **trusted, **changes})
            database = cleanup.enter_context(Database.open(settings.database))
            port = cleanup.enter_context(served(settings, database, links=links))
            return RunningSite(Caller(port, {}), settings, database, services, make_picture)

        yield start


def _views(width: int, height: int, score: float) -> tuple[ViewScore, ...]:
    """Return four views with overlap, of which the last is the strongest."""
    side = min(160, width, height)
    places = [(0, 0), (width - side, 0), (0, height - side), (width - side, height - side)]
    return tuple(
        ViewScore(x=x, y=y, width=side, height=side, score=min(1.0, max(0.0, score + 0.1 * (number - 2))))
        for number, (x, y) in enumerate(places)
    )
