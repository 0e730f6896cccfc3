"""The bucket: whether it is there, and whether we may do in it all that a backup and its removal take."""

from __future__ import annotations

import secrets
import time

from fuse_tier.config import BucketConfig
from fuse_tier.doctor.finding import Finding
from fuse_tier.errors import FuseTierError, NotFound
from fuse_tier.quantities import format_duration
from fuse_tier.tiers.bucket import BucketTier

_FOLDER = "doctor"
_PATIENCE_SECONDS = 3.0
_CHECKS = (
    "bucket.exists",
    "bucket.create",
    "bucket.read",
    "bucket.update",
    "bucket.delete",
    "bucket.softDelete",
    "bucket.lifecycle",
    "bucket.storageClass",
)
_COSTLY_WHEN_BRIEF = ("NEARLINE", "COLDLINE", "ARCHIVE")  # cloud.google.com/storage/docs/storage-classes


async def examine(config: BucketConfig, ahead: list[float]) -> list[Finding]:
    """Writes an object, reads, marks and deletes it. Adds to ``ahead`` how many seconds its clock is ahead."""
    bucket = BucketTier(config.url, config.endpoint, patience=_PATIENCE_SECONDS, key_file=config.credentials)
    found: list[Finding] = []
    try:
        await _examine(config, bucket, found)
        ahead.append(bucket.now() - time.time())
    except FuseTierError as error:
        found.append(Finding.failed(_CHECKS[len(found)], str(error), _remedy(error)))
        if len(found) > 1:  # it answered
            ahead.append(bucket.now() - time.time())
    finally:
        await bucket.aclose()
    failed = found[-1].check
    return [*found, *(Finding.skipped(check, f"after {failed} failed") for check in _CHECKS[len(found) :])]


async def _examine(config: BucketConfig, bucket: BucketTier, found: list[Finding]) -> None:
    documents, name, text = bucket.documents, f"{_FOLDER}/{secrets.token_hex(8)}", secrets.token_bytes(32)
    await documents.listed(f"{_FOLDER}/")
    found.append(Finding.ok("bucket.exists", f"{bucket.place} can be listed"))
    await documents.create(name, text)
    found.append(Finding.ok("bucket.create", "an object can be written"))
    if await documents.read(name) != text:
        raise NotFound(f"checkpoints/{name} in {bucket.place} is not what was written")
    found.append(Finding.ok("bucket.read", "it can be read back"))
    await documents.renew(name)
    found.append(Finding.ok("bucket.update", "its metadata can be changed"))
    removal = await documents.remove([name])
    if removal.kept:
        detail = f"what is written stays for a time: {removal.kept[0].reason}"
        remedy = "nothing, if that is meant: old checkpoints are given up when the bucket lets them go"
        found.append(Finding.warning("bucket.delete", detail, remedy))
    else:
        found.append(Finding.ok("bucket.delete", "and deleted"))
    name = config.url.removeprefix("gs://").partition("/")[0]
    settings = await bucket.settings()
    if settings is None:
        why = "its owner did not allow storage.buckets.get, which backups don't need"
        found += [Finding.skipped(check, why) for check in _CHECKS[len(found) :]]
        return
    found.append(_soft_delete(name, settings.soft_delete_seconds))
    found.append(_lifecycle(name, settings.deleting))
    found.append(_storage_class(name, settings.storage_class))


def _lifecycle(name: str, deleting: tuple[str, ...]) -> Finding:
    if not deleting:
        return Finding.ok("bucket.lifecycle", "no rule deletes what newer snapshots may still name")
    return Finding.warning(
        "bucket.lifecycle",
        f"a rule deletes content that the newest snapshot may name, by its age: {'; '.join(deleting)}",
        f"take the rule from gs://{name}, or have it match other prefixes only: `keep` gives up what is old",
    )


def _storage_class(name: str, storage_class: str) -> Finding:
    if storage_class not in _COSTLY_WHEN_BRIEF:
        return Finding.ok("bucket.storageClass", f"it is {storage_class}")
    return Finding.warning(
        "bucket.storageClass",
        f"it is {storage_class}, which charges for a month or more of each object, however soon it goes",
        f"nothing, if that is meant; else `gcloud storage buckets update gs://{name} "
        "--default-storage-class=STANDARD`",
    )


def _soft_delete(name: str, seconds: float) -> Finding:
    if not seconds:
        return Finding.ok("bucket.softDelete", "what is deleted is gone, and costs nothing any more")
    return Finding.warning(
        "bucket.softDelete",
        f"what is deleted stays, unseen, for {format_duration(seconds)}, and is paid for",
        f"nothing, if that is meant; else `gcloud storage buckets update gs://{name} --clear-soft-delete`",
    )


def _remedy(error: FuseTierError) -> str:
    return "see what else uses that bucket" if isinstance(error, NotFound) else ""
