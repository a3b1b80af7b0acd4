"""Notifications of object stores, in the forms in which they come."""

import base64

import pytest

from worker.settings import Settings
from worker.web.notifications import NotificationError, StoredObject, check_of, stored_objects

SETTINGS = Settings(thumbnail_bucket="thumbnails")


def record(
    key: str = "a.jpg", *, bucket: str = "uploads", event: str = "ObjectCreated:Put", **fields: object
) -> dict[str, object]:
    """Return one record of S3's form."""
    stored = {"key": key, "size": 5, "eTag": "d41d8cd9", "sequencer": "0055AED6DCD90281E5", **fields}
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": event,
        "s3": {"s3SchemaVersion": "1.0", "bucket": {"name": bucket}, "object": stored},
    }


def test_keys_are_decoded_as_s3_encodes_them() -> None:
    """A space is a plus sign, and a plus sign is encoded, as in a form."""
    (found,) = stored_objects({"Records": [record("in/a+b%2B%C3%A4.jpg")]})
    assert found == StoredObject("uploads", "in/a b+ä.jpg", None, "d41d8cd9")


def test_every_way_of_creating_an_object_counts_and_no_other_event() -> None:
    """Put, copy, multipart, also as MinIO names them; deletions, restorations and tags are none."""
    created = ["ObjectCreated:Put", "ObjectCreated:CompleteMultipartUpload", "s3:ObjectCreated:Copy"]
    others = [
        "ObjectRemoved:Delete",
        "ObjectRestore:Completed",
        "ObjectTagging:Put",
        "s3:ObjectRemoved:Delete",
    ]
    records = [record(f"{number}", event=name) for number, name in enumerate(created + others)]
    assert [found.key for found in stored_objects({"Records": records})] == ["0", "1", "2"]


def test_a_test_event_and_a_folder_are_no_objects() -> None:
    """S3 sends the first when a notification is configured; consoles make the second."""
    assert stored_objects({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "uploads"}) == []
    assert stored_objects({"Records": [record("in/", size=0)]}) == []
    assert len(stored_objects({"Records": [record("in/", size=5)]})) == 1


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        "text",
        {"Records": {}},
        {"Records": ["a"]},
        {"Records": [{"eventName": "ObjectCreated:Put"}]},
        {"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "a"}, "object": {}}}]},
        {"event_type": "create", "key": 1, "message": {}},
    ],
)
def test_what_is_no_notification_is_refused(document: object) -> None:
    """Whatever it lacks."""
    with pytest.raises(NotificationError):
        stored_objects(document)


def test_a_check_follows_from_bucket_key_and_version_or_etag() -> None:
    """The same notification, or the same bytes again, is the same check; another version is another one."""
    records = [
        record(),
        record(),
        record(eTag="other"),
        record(versionId="v1"),
        record(versionId="v1", eTag="other"),
        record(versionId="null"),
        record("b.jpg"),
        record(bucket="other"),
    ]
    checks = [check_of(found, SETTINGS) for found in stored_objects({"Records": records})]
    ids = [check.check_id for check in checks if check]
    assert [ids.index(each) for each in ids] == [0, 0, 2, 3, 3, 0, 6, 7]
    assert checks[3] is not None
    assert (checks[3].version_id, checks[3].etag) == ("v1", '"d41d8cd9"')


def test_our_own_thumbnails_and_what_no_check_can_name_are_ignored() -> None:
    """A thumbnail that is stored would otherwise be judged, and so on for ever."""
    ours = StoredObject("thumbnails", "thumbnails/ab/abcd.jpg", None, "e")
    assert check_of(ours, SETTINGS) is None
    assert check_of(StoredObject("thumbnails", "other.jpg", None, "e"), SETTINGS) is not None
    assert check_of(StoredObject("uploads", "a" * 1025, None, "e"), SETTINGS) is None


@pytest.mark.parametrize(
    ("kind", "path", "entry", "key"),
    [
        ("create", "/buckets/uploads/in/a b+ä.jpg", {}, "in/a b+ä.jpg"),
        ("update", "/buckets/uploads/a%20b.jpg", {}, "a%20b.jpg"),
        ("create", "/buckets/uploads", {"is_directory": True}, None),
        ("create", "/buckets/uploads/in", {"is_directory": True}, None),
        ("create", "/buckets/uploads/.uploads/1/0001.part", {}, None),
        ("create", "/buckets/.system/owners/uploads", {}, None),
        ("create", "/topics/a", {}, None),
        ("delete", "/buckets/uploads/a.jpg", {}, None),
        ("rename", "/buckets/uploads/a.jpg", {}, None),
    ],
)
def test_the_filer_of_seaweedfs_names_paths(
    kind: str, path: str, entry: dict[str, object], key: str | None
) -> None:
    """Not encoded; folders, parts of uploads and its own files are no objects."""
    document = {"event_type": kind, "key": path, "message": {"new_entry": {"name": "a", **entry}}}
    assert [found.key for found in stored_objects(document)] == ([key] if key else [])


def test_the_etag_of_seaweedfs_is_that_of_its_s3_api() -> None:
    """A multipart upload's is in the extended attributes, a single one's also its MD5."""
    md5 = bytes.fromhex("5d41402abc4b2a76b9719d911017c592")
    multipart = base64.b64encode(b"bccb8986cc6b395e4f045d410c776698-1").decode()

    def etag(entry: object) -> str | None:
        document = {"event_type": "create", "key": "/buckets/uploads/a", "message": {"new_entry": entry}}
        return stored_objects(document)[0].etag

    assert etag({"attributes": {"md5": base64.b64encode(md5).decode()}}) == md5.hex()
    assert etag({"extended": {"Seaweed-X-Amz-ETag": multipart}}) == "bccb8986cc6b395e4f045d410c776698-1"
    assert etag({"extended": {"Seaweed-X-Amz-ETag": "%"}, "attributes": 1}) is None
