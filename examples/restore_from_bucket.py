#!/usr/bin/env python3
"""Gives back a job's files from its bucket without fuse-tier: google-cloud-storage and the standard library do.

    python restore_from_bucket.py gs://BUCKET[/PREFIX] NAMESPACE/WORKLOAD/REPLICA[@NUMBER] DIRECTORY

Without a number, the newest snapshot. What stands where is told in docs/bucket-layout.md.
"""

import json
import os
import re
import sys
import zipfile
from urllib.parse import unquote_to_bytes

from google.cloud import storage

url, snapshot, directory = sys.argv[1:]
bucket_name, _, prefix = url.removeprefix("gs://").partition("/")
prefix = f"{prefix.rstrip('/')}/" if prefix else ""
identity, _, number = snapshot.partition("@")
bucket = storage.Client().bucket(bucket_name)

wanted = f"{int(number):019d}" if number else "[0-9]{19}"
listed = bucket.list_blobs(prefix=f"{prefix}manifests/{identity}/")
manifests = [blob for blob in listed if re.fullmatch(rf".*/{wanted}\.manifest", blob.name)]
if not manifests:
    sys.exit(f"there is no snapshot {snapshot} in {url}")
manifest = manifests[-1]
entries = [json.loads(line) for line in manifest.download_as_text().splitlines()[1:-1]]

packs: dict[str, zipfile.ZipFile] = {}  # the archive of each small file that shares an object with others
for blob in bucket.list_blobs(prefix=f"{prefix}packs/"):
    if re.fullmatch(r".*/[0-9a-f]{32}-[0-9]+\.zip", blob.name):  # else it is somebody else's
        archive = zipfile.ZipFile(blob.open("rb"))
        packs |= dict.fromkeys(archive.namelist(), archive)


def local(quoted: str) -> bytes:
    """Where a path of the manifest goes; never out of the directory."""
    path = unquote_to_bytes(quoted)
    if path.startswith(b"/") or b".." in path.split(b"/"):
        sys.exit(f"{quoted!r} would leave {directory}: nothing more is restored")
    return os.path.join(os.fsencode(directory), path)


for entry in entries:
    path, kind, name = local(entry["path"]), entry["kind"], f"{entry.get('xxh3_128')}-{entry.get('size')}"
    if kind == "d":
        os.makedirs(path, exist_ok=True)
    elif kind == "l":
        os.symlink(unquote_to_bytes(entry["target"]), path)
    elif kind == "p":
        os.mkfifo(path)
    elif kind == "h":
        os.link(local(entry["target"]), path)
    elif name in packs:
        with open(path, "wb") as file:
            file.write(packs[name].read(name))
    else:
        bucket.blob(f"{prefix}blobs/{name[:2]}/{name}").download_to_filename(os.fsdecode(path))

for entry in reversed(entries):  # a directory after what is in it
    if entry["kind"] in "dfp":
        path = local(entry["path"])
        os.chmod(path, entry["mode"])
        os.utime(path, ns=(entry["mtime_ns"], entry["mtime_ns"]))
print(f"{manifest.name}: {len(entries)} names restored to {directory}")
