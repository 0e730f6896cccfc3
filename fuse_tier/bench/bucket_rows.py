"""The benchmarks of the bucket tier, against the emulator, beside plain google-cloud-storage and plain HTTP."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fuse_tier import metrics
from fuse_tier.bench.bucket_places import (
    BUCKET,
    Directory,
    Loop,
    files_in_memory,
    in_bucket,
    snapshot_id,
    tier_of_emulator,
)
from fuse_tier.bench.frame import Figure, Row, alternating
from fuse_tier.bench.nodes import IDENTITY, in_thread, mounted, settled, worker_peak_megabytes
from fuse_tier.bench.places import BLOCK_BYTES, GIB, tmpfs, write_file, write_files
from fuse_tier.emulator import HOST, running_emulator
from fuse_tier.errors import FuseTierError
from fuse_tier.tiers.bucket import BucketTier

_RUNS = 3
_FILES = 8
_SMALL_FILES = 10_000
_SMALL_BYTES = 4 << 10
_PLAIN_SMALL_FILES = 500  # of a plain loop, which takes them one by one: so many tell its pace
_RAW_AT_ONCE = 4  # requests; with more the emulator is no faster
_REQUEST_LIMIT = 40.0
_MEMORY_LIMIT_MB = 300.0

Way = Callable[[Directory, Loop, int], Awaitable[Figure]]
"""Seconds for all files of ours, and for so many of a loop."""


async def _stored(tier: BucketTier, files: Directory, number: int) -> float:
    begun = time.perf_counter()
    await tier.store(files.paths, files)
    await tier.commit(files.manifest(number))
    return time.perf_counter() - begun


async def _upload(files: Directory, reference: Loop, reference_count: int) -> Figure:
    async def ours() -> float:
        async with tier_of_emulator() as (tier, _):
            return await _stored(tier, files, 1)

    async def of_reference() -> float:
        async with running_emulator(BUCKET) as emulator:
            return await in_thread(in_bucket, emulator, reference, files.some(reference_count))

    return await alternating(ours, of_reference, _RUNS)


async def _download(files: Directory, reference: Loop, reference_count: int) -> Figure:
    async with tier_of_emulator() as (tier, emulator):
        await _stored(tier, files, 1)
        await in_thread(in_bucket, emulator, _raw_puts, files.some(reference_count))

        async def ours() -> float:
            fresh = BucketTier(f"gs://{BUCKET}/bench", emulator.endpoint)
            await fresh.snapshots()
            files.target.mkdir()
            begun = time.perf_counter()
            manifest = await fresh.manifest(snapshot_id(1))
            for error in (await fresh.fetch(manifest.blobs, files)).failed.values():
                raise error
            seconds = time.perf_counter() - begun
            await fresh.aclose()
            shutil.rmtree(files.target)
            return seconds

        async def of_reference() -> float:
            return await in_thread(in_bucket, emulator, reference, files.some(reference_count))

        return await alternating(ours, of_reference, _RUNS)


def _upload_one_by_one(bucket: Any, paths: list[Path]) -> float:
    begun = time.perf_counter()
    for path in paths:
        bucket.blob(f"bench/{path.name}").upload_from_filename(str(path))
    return time.perf_counter() - begun


def _download_one_by_one(bucket: Any, paths: list[Path]) -> float:
    target = paths[0].parent.parent / "plain"
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
                f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=bench/{path.name}",
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
    port = int(bucket.client._connection.API_BASE_URL.rpartition(":")[2])

    def get(path: Path) -> None:
        connection = http.client.HTTPConnection(HOST, port)
        connection.request("GET", f"/download/storage/v1/b/{BUCKET}/o/bench%2F{path.name}?alt=media")
        answer = connection.getresponse()
        while answer.read(BLOCK_BYTES):
            pass
        connection.close()

    begun = time.perf_counter()
    with ThreadPoolExecutor(_RAW_AT_ONCE) as threads:
        list(threads.map(get, paths))
    return time.perf_counter() - begun


async def _large(way: Way, reference: Loop, directory: Path) -> Figure:
    async with files_in_memory(directory, _FILES, GIB // _FILES) as files:
        seconds = await way(files, reference, _FILES)
    return Figure(GIB / seconds.value / 1e6, GIB / seconds.reference_value / 1e6)


async def _small(way: Way, reference: Loop, directory: Path) -> Figure:
    async with files_in_memory(directory, _SMALL_FILES, _SMALL_BYTES) as files:
        seconds = await way(files, reference, _PLAIN_SMALL_FILES)
    return Figure(_SMALL_FILES / seconds.value, _PLAIN_SMALL_FILES / seconds.reference_value)


async def _requests(directory: Path) -> Figure:
    with tmpfs(directory, 4 * GIB) as plain:
        await in_thread(write_files, plain / "source", _FILES, GIB // _FILES)
        files = Directory(plain / "source", plain / "target")
        async with running_emulator(BUCKET) as emulator:
            tier = BucketTier(f"gs://{BUCKET}/bench", emulator.endpoint)
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
        async with tier_of_emulator() as (tier, _):
            for number in range(2):
                files = Directory(source, plain / "target")

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


_LIMIT = "the emulator's limit: plain HTTP, 4 at a time"
_UPLOADS = "loop of upload_from_filename"
_DOWNLOADS = "loop of download_to_filename"

BUCKET_ROWS = (
    Row("bucket.upload", "MB/s", _UPLOADS, partial(_large, _upload, _upload_one_by_one)),
    Row("bucket.upload.limit", "MB/s", _LIMIT, partial(_large, _upload, _raw_puts)),
    Row("bucket.download", "MB/s", _DOWNLOADS, partial(_large, _download, _download_one_by_one)),
    Row("bucket.download.limit", "MB/s", _LIMIT, partial(_large, _download, _raw_gets)),
    Row("bucket.small.backup", "files/s", _UPLOADS, partial(_small, _upload, _upload_one_by_one)),
    Row("bucket.small.restore", "files/s", _DOWNLOADS, partial(_small, _download, _download_one_by_one)),
    Row("bucket.requests", "requests", "limit", _requests),
    Row("bucket.incremental", "MB", "the first snapshot", _incremental),
    Row("bucket.memory", "MB", "limit", _memory),
)
