"""The benchmarks of the bucket tier, against the emulator, beside plain google-cloud-storage and plain HTTP."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fuse_tier import metrics
from fuse_tier.bench.frame import Figure, Row, alternating
from fuse_tier.bench.nodes import IDENTITY, in_thread, mounted, settled, worker_peak_megabytes
from fuse_tier.bench.places import BLOCK_BYTES, GIB, tmpfs, warm, write_file, write_files
from fuse_tier.blobs import Blob, Incoming
from fuse_tier.emulator import HOST, Emulator, running_emulator
from fuse_tier.errors import Damaged, FuseTierError
from fuse_tier.hashing import hash_descriptor
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest
from fuse_tier.tiers.bucket import BucketTier

_BUCKET = "checkpoints"
_RUNS = 3
_FILES = 8
_SMALL_FILES = 10_000
_SMALL_BYTES = 4 << 10
_PLAIN_SMALL_FILES = 500  # of a plain loop, which takes them one by one: so many tell its pace
_RAW_AT_ONCE = 4  # requests; with more the emulator is no faster
_REQUEST_LIMIT = 40.0
_MEMORY_LIMIT_MB = 300.0


class _Directory:
    """Files as a source and a sink of blobs, by what is in them."""

    def __init__(self, source: Path, target: Path) -> None:
        self._target = target
        self.paths: dict[Blob, Path] = {}
        for path in sorted(source.iterdir()):
            fd = os.open(path, os.O_RDONLY)
            self.paths[hash_descriptor(fd)] = path
            os.close(fd)

    def open(self, blob: Blob) -> int:
        return os.open(self.paths[blob], os.O_RDONLY | os.O_CLOEXEC)

    def create(self, blob: Blob) -> Incoming:
        return _Landing(self._target / blob.name, blob)

    def manifest(self, number: int) -> Manifest:
        entries = [Entry(b"", Kind.DIRECTORY, 0o755)]
        files = ((path.name.encode(), blob) for blob, path in self.paths.items())
        entries += [Entry(name, Kind.FILE, 0o644, blob=blob) for name, blob in sorted(files)]
        snapshot = SnapshotId(Identity.parse(IDENTITY), number)
        return Manifest(snapshot, Lineage("bench"), "a", time.time_ns(), tuple(entries))


class _Landing:
    def __init__(self, path: Path, blob: Blob) -> None:
        self._blob = blob
        self._path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if blob.size:
            os.posix_fallocate(self.fd, 0, blob.size)

    def accept(self) -> None:
        found = hash_descriptor(self.fd)
        os.close(self.fd)
        if found != self._blob:
            raise Damaged(f"{found} arrived in place of {self._blob}")

    def discard(self) -> None:
        os.close(self.fd)
        self._path.unlink()


@asynccontextmanager
async def _tier() -> AsyncIterator[tuple[BucketTier, Emulator]]:
    """A fresh emulator each time: what it holds is memory, which none of the others shall pay for."""
    async with running_emulator(_BUCKET) as emulator:
        tier = BucketTier(f"gs://{_BUCKET}/bench", emulator.endpoint)
        await tier.snapshots()  # loads what is needed for the first request
        yield tier, emulator
        await tier.aclose()


def _client(emulator: Emulator) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    return storage.Client("bench", credentials, client_options={"api_endpoint": emulator.endpoint})


async def _back_up(files: _Directory) -> float:
    async with _tier() as (tier, _):
        return await _stored(tier, files, 1)


async def _stored(tier: BucketTier, files: _Directory, number: int) -> float:
    begun = time.perf_counter()
    await tier.store(files.paths, files)
    await tier.commit(files.manifest(number))
    return time.perf_counter() - begun


async def _restored(files: _Directory, target: Path) -> float:
    async with _tier() as (tier, emulator):
        await _stored(tier, files, 1)
        another = BucketTier(f"gs://{_BUCKET}/bench", emulator.endpoint)
        await another.snapshots()
        target.mkdir()
        begun = time.perf_counter()
        manifest = await another.manifest(SnapshotId(Identity.parse(IDENTITY), 1))
        fetched = await another.fetch(manifest.blobs, files)
        seconds = time.perf_counter() - begun
        if fetched.failed:
            raise next(iter(fetched.failed.values()))
        await another.aclose()
        shutil.rmtree(target)
        return seconds


async def _with_plain_loop(files: _Directory, work: Callable[[Any, list[Path]], float], count: int | None) -> float:
    paths = list(files.paths.values())[:count]
    async with running_emulator(_BUCKET) as emulator:
        return await in_thread(_in_bucket, emulator, work, paths)


def _in_bucket(emulator: Emulator, work: Callable[[Any, list[Path]], float], paths: list[Path]) -> float:
    client = _client(emulator)
    try:
        bucket = client.bucket(_BUCKET)
        bucket.blob("first").upload_from_string(b"")
        return work(bucket, paths)
    finally:
        client.close()


def _upload_one_by_one(bucket: Any, paths: list[Path]) -> float:
    begun = time.perf_counter()
    for path in paths:
        bucket.blob(f"bench/{path.name}").upload_from_filename(str(path))
    return time.perf_counter() - begun


def _download_one_by_one(target: Path, bucket: Any, paths: list[Path]) -> float:
    with ThreadPoolExecutor(_RAW_AT_ONCE) as threads:
        list(threads.map(lambda path: bucket.blob(f"bench/{path.name}").upload_from_filename(str(path)), paths))
    target.mkdir()
    begun = time.perf_counter()
    for path in paths:
        bucket.blob(f"bench/{path.name}").download_to_filename(str(target / path.name))
    seconds = time.perf_counter() - begun
    shutil.rmtree(target)
    return seconds


def _raw_puts(bucket: Any, paths: list[Path]) -> float:
    port = int(bucket.client._connection.API_BASE_URL.rpartition(":")[2])

    def put(path: Path) -> None:
        connection = http.client.HTTPConnection(HOST, port)
        with path.open("rb") as file:
            connection.request(
                "POST",
                f"/upload/storage/v1/b/{_BUCKET}/o?uploadType=media&name={path.name}",
                file,
                {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)},
            )
            answer = connection.getresponse()
            text = answer.read()
        connection.close()
        if int(json.loads(text)["size"]) != path.stat().st_size:
            raise FuseTierError(f"the emulator did not take {path}: {answer.status}")

    begun = time.perf_counter()
    with ThreadPoolExecutor(_RAW_AT_ONCE) as threads:
        list(threads.map(put, paths))
    return time.perf_counter() - begun


def _raw_gets(bucket: Any, paths: list[Path]) -> float:
    _raw_puts(bucket, paths)
    port = int(bucket.client._connection.API_BASE_URL.rpartition(":")[2])

    def get(path: Path) -> None:
        connection = http.client.HTTPConnection(HOST, port)
        connection.request("GET", f"/download/storage/v1/b/{_BUCKET}/o/{path.name}?alt=media")
        answer = connection.getresponse()
        while answer.read(BLOCK_BYTES):
            pass
        connection.close()

    begun = time.perf_counter()
    with ThreadPoolExecutor(_RAW_AT_ONCE) as threads:
        list(threads.map(get, paths))
    return time.perf_counter() - begun


async def _speeds(
    directory: Path,
    count: int,
    size: int,
    ours: Callable[[_Directory, Path], Any],
    reference: Callable[[Path], Callable[[Any, list[Path]], float]],
    reference_count: int,
    unit_per_file: float,
) -> Figure:
    """How much a second, in a unit of which each file has so much."""
    with tmpfs(directory, 4 * GIB) as plain:
        await in_thread(warm, plain, 2 * GIB)
        await in_thread(write_files, plain / "source", count, size)
        target = plain / "target"
        files = _Directory(plain / "source", target)

        async def of_ours() -> float:
            seconds: float = await ours(files, target)
            return count * unit_per_file / seconds

        async def of_reference() -> float:
            seconds = await _with_plain_loop(files, reference(plain / "plain"), reference_count)
            return reference_count * unit_per_file / seconds

        return await alternating(of_ours, of_reference, _RUNS)


def _large(ours: Callable[[_Directory, Path], Any], reference: Callable[[Path], Any]) -> Any:
    size = GIB // _FILES
    return lambda directory: _speeds(directory, _FILES, size, ours, reference, _FILES, size / 1e6)


def _small(ours: Callable[[_Directory, Path], Any], reference: Callable[[Path], Any]) -> Any:
    return lambda directory: _speeds(directory, _SMALL_FILES, _SMALL_BYTES, ours, reference, _PLAIN_SMALL_FILES, 1.0)


async def _upload(files: _Directory, _: Path) -> float:
    return await _back_up(files)


async def _requests(directory: Path) -> Figure:
    with tmpfs(directory, 4 * GIB) as plain:
        await in_thread(write_files, plain / "source", _FILES, GIB // _FILES)
        files = _Directory(plain / "source", plain / "target")
        async with running_emulator(_BUCKET) as emulator:
            tier = BucketTier(f"gs://{_BUCKET}/bench", emulator.endpoint)
            before = _answers()
            await _stored(tier, files, 1)
            count = _answers() - before
            await tier.aclose()
    return Figure(count, _REQUEST_LIMIT)


def _answers() -> float:
    return sum(
        float(sample.value)
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.name == "fuse_tier_bucket_requests_total"
    )


async def _incremental(directory: Path) -> Figure:
    """What a second snapshot sends, beside what the first one did."""
    with tmpfs(directory, 4 * GIB) as plain:
        source = plain / "source"
        await in_thread(write_files, source, _FILES, GIB // _FILES)
        sent = [0, 0]
        async with _tier() as (tier, _):
            for number in range(2):
                files = _Directory(source, plain / "target")

                def count(moved: int, number: int = number) -> None:
                    sent[number] += moved

                await tier.store(files.paths, files, count)
                await tier.commit(files.manifest(number + 1))
                (source / "00003").unlink(missing_ok=True)
                await in_thread(write_file, source / "00003", GIB // _FILES, os.urandom(BLOCK_BYTES))
    return Figure(sent[1] / 1e6, sent[0] / 1e6)


async def _memory(directory: Path) -> Figure:
    """The highest that a worker came to in a backup of large and of small files, a second one, and a restore."""
    async with mounted(directory / "c", ["a"], ram_size="4GiB", bucket=True, coordinator=False) as (cluster, mount):
        node = cluster["a"]
        await in_thread(write_files, mount / "large", _FILES, GIB // _FILES)
        await in_thread(write_files, mount / "small", _SMALL_FILES, _SMALL_BYTES)
        await settled(node, "bucket")
        (mount / "large/00003").unlink()
        await in_thread(write_file, mount / "large/00003", GIB // _FILES, os.urandom(BLOCK_BYTES))
        await settled(node, "bucket")
        peaks = [worker_peak_megabytes(node)]
        await cluster.lose_all_ram()
        await cluster.start()
        await node.mount(IDENTITY, mount)
        await settled(node, "ram")
        peaks.append(worker_peak_megabytes(node))
    return Figure(max(peaks), _MEMORY_LIMIT_MB)


def _once(work: Callable[[Any, list[Path]], float]) -> Callable[[Path], Callable[[Any, list[Path]], float]]:
    return lambda _: work


def _downloading(target: Path) -> Callable[[Any, list[Path]], float]:
    return partial(_download_one_by_one, target)


_LIMIT = "the emulator's limit: plain HTTP, 4 at a time"

BUCKET_ROWS = (
    Row("bucket.upload", "MB/s", "loop of upload_from_filename", _large(_upload, _once(_upload_one_by_one))),
    Row("bucket.upload.limit", "MB/s", _LIMIT, _large(_upload, _once(_raw_puts))),
    Row("bucket.download", "MB/s", "loop of download_to_filename", _large(_restored, _downloading)),
    Row("bucket.download.limit", "MB/s", _LIMIT, _large(_restored, _once(_raw_gets))),
    Row(
        "bucket.small.backup",
        "files/s",
        "loop of upload_from_filename",
        _small(_upload, _once(_upload_one_by_one)),
    ),
    Row("bucket.small.restore", "files/s", "loop of download_to_filename", _small(_restored, _downloading)),
    Row("bucket.requests", "requests", "limit", _requests),
    Row("bucket.incremental", "MB", "the first snapshot", _incremental),
    Row("bucket.memory", "MB", "limit", _memory),
)
