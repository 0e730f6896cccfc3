from __future__ import annotations

import json
from dataclasses import replace

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_tier.blobs import Blob
from fuse_tier.entries import OUR_XATTRS
from fuse_tier.errors import ConfigError, MalformedManifest
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest, decode, encode, quote, unquote, validate

ROOT = Entry(b"", Kind.DIRECTORY, 0o755, 1000, 1000, 1_700_000_000_000_000_000)
BLOB = hash_bytes(b"0123")


patiently = settings(suppress_health_check=[HealthCheck.too_slow])  # drawing trees is slow on a busy machine


def file(path: bytes, **fields: object) -> Entry:
    return Entry(path, Kind.FILE, 0o644, blob=BLOB, **fields)  # type: ignore[arg-type]


def manifest_of(*entries: Entry) -> Manifest:
    return Manifest(
        SnapshotId(Identity("default", "llama", "slice-0-3"), 12),
        Lineage("exp-7", "0b9c", 8, "2x4"),
        "node-a",
        1_700_000_000_000_000_000,
        (ROOT, *entries),
    )


EXAMPLE = manifest_of(
    Entry(b"latest", Kind.SYMLINK, 0o777, target=b"../step \xff%20"),
    Entry(b"step_100", Kind.DIRECTORY, 0o2750, xattrs=((b"user.a", b"\0\n"), (b"user.b", b""))),
    Entry(b"step_100/fifo", Kind.FIFO, 0o600),
    file(b'step_100/rank\n1"\xff.bin'),
    file(b"step_100/rank 0.bin", uid=4294967295, mtime_ns=-1),
    Entry(b"the same", Kind.HARDLINK, target=b"step_100/rank 0.bin"),
)


def sealed(lines: list[str]) -> bytes:
    """A text with a right last line, whatever stands before."""
    body = ("\n".join(lines) + "\n").encode()
    return body + b'{"xxh3_128":"%s"}\n' % xxhash.xxh3_128_hexdigest(body).encode()


def lines_of(manifest: Manifest) -> list[str]:
    return encode(manifest).decode().splitlines()[:-1]


def changed(line: int, /, **fields: object) -> bytes:
    """EXAMPLE's text with fields of one line set (or, where the value is None, removed)."""
    lines = lines_of(EXAMPLE)
    new = {key: value for key, value in (json.loads(lines[line]) | fields).items() if value is not None}
    lines[line] = json.dumps(new, separators=(",", ":"))
    return sealed(lines)


# ---- whole trees, arbitrary ones ----

_names = (
    st.binary(min_size=1, max_size=20)
    .map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda name: name not in (b".", b".."))
)
_times = st.integers(-(1 << 63), (1 << 63) - 1)
_ids = st.integers(0, (1 << 32) - 1)
_modes = st.integers(0, 0o7777)
_blobs = st.builds(Blob, st.binary(min_size=16, max_size=16), st.integers(0, (1 << 63) - 1))
_xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=10)
    .map(lambda name: b"user." + name.replace(b"\0", b"_"))
    .filter(lambda name: not name.startswith(OUR_XATTRS)),
    st.binary(max_size=20),
    max_size=2,
).map(lambda found: tuple(sorted(found.items())))


@st.composite
def trees(draw: st.DrawFn) -> tuple[Entry, ...]:
    def attributes() -> tuple[int, int, int, int]:
        return draw(_modes), draw(_ids), draw(_ids), draw(_times)

    entries = {b"": Entry(b"", Kind.DIRECTORY, *attributes(), xattrs=draw(_xattrs))}
    directories, files = [b""], []
    for _ in range(draw(st.integers(0, 12))):
        parent, name = draw(st.sampled_from(directories)), draw(_names)
        path = parent + b"/" + name if parent else name
        if path in entries:
            continue
        kind = draw(st.sampled_from(Kind))
        if kind is Kind.DIRECTORY:
            entries[path] = Entry(path, kind, *attributes(), xattrs=draw(_xattrs))
            directories.append(path)
        elif kind is Kind.FILE:
            entries[path] = Entry(path, kind, *attributes(), blob=draw(_blobs), xattrs=draw(_xattrs))
            files.append(path)
        elif kind is Kind.SYMLINK:
            target = draw(st.binary(min_size=1, max_size=40).filter(lambda text: b"\0" not in text))
            entries[path] = Entry(path, kind, *attributes(), target=target)
        elif kind is Kind.FIFO:
            entries[path] = Entry(path, kind, *attributes())
        elif earlier := [first for first in files if first < path]:
            entries[path] = Entry(path, kind, target=draw(st.sampled_from(earlier)))
    return tuple(entries[path] for path in sorted(entries))


_parts = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,10}[A-Za-z0-9])?", fullmatch=True)
_lineages = st.builds(Lineage, _parts, st.just("") | _parts, st.integers(0, 100), st.just("") | _parts)
_ids_of_snapshots = st.builds(SnapshotId, st.builds(Identity, _parts, _parts, _parts), st.integers(1, (1 << 63) - 1))
_created = st.integers(0, (1 << 63) - 1)
manifests = st.builds(Manifest, _ids_of_snapshots, _lineages, _parts, _created, trees())


@patiently
@given(manifests)
def test_what_is_encoded_is_decoded_as_it_was(manifest: Manifest) -> None:
    text = encode(manifest)
    assert decode(text) == manifest
    assert encode(decode(text)) == text
    assert all(32 <= byte < 127 or byte == 10 for byte in text)


@patiently
@given(manifests, st.data())
def test_any_flipped_byte_is_noticed(manifest: Manifest, data: st.DataObject) -> None:
    text = bytearray(encode(manifest))
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MalformedManifest):
        decode(bytes(text))


@patiently
@given(manifests, st.data())
def test_any_truncation_is_noticed(manifest: Manifest, data: st.DataObject) -> None:
    text = encode(manifest)
    with pytest.raises(MalformedManifest):
        decode(text[: data.draw(st.integers(0, len(text) - 1))])


@patiently
@given(manifests, st.binary(min_size=1, max_size=20))
def test_anything_appended_is_noticed(manifest: Manifest, more: bytes) -> None:
    with pytest.raises(MalformedManifest):
        decode(encode(manifest) + more)


@given(st.binary(max_size=200))
def test_noise_is_no_manifest(noise: bytes) -> None:
    with pytest.raises(MalformedManifest):
        decode(noise)
    with pytest.raises(MalformedManifest):
        decode(sealed([noise.decode("latin-1")]))


@patiently
@given(manifests, st.data())
def test_a_line_that_is_left_out_twice_there_or_moved_is_noticed(manifest: Manifest, data: st.DataObject) -> None:
    lines = lines_of(manifest)
    place = data.draw(st.integers(0, len(lines) - 1))
    other = data.draw(st.integers(0, len(lines) - 1).filter(lambda number: number != place))
    swapped = list(lines)
    swapped[place], swapped[other] = swapped[other], swapped[place]
    for wrong in (lines[:place] + lines[place + 1 :], [*lines[:place], lines[place], *lines[place:]], swapped):
        with pytest.raises(MalformedManifest):
            decode(sealed(wrong))


@patiently
@given(manifests, st.data())
def test_whatever_replaces_a_value_is_refused_or_is_canonical(manifest: Manifest, data: st.DataObject) -> None:
    """A manifest that lies consistently, hash included, is refused or is one that we could have written."""
    lines = lines_of(manifest)
    place = data.draw(st.integers(0, len(lines) - 1))
    fields = json.loads(lines[place])
    key = data.draw(st.sampled_from(sorted(fields)))
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=3,
    )
    fields[key] = data.draw(json_values)
    lines[place] = json.dumps(fields, separators=(",", ":"))
    text = sealed(lines)
    try:
        accepted = decode(text)
    except MalformedManifest:
        return
    assert encode(accepted) == text
    validate(accepted.entries)


@given(st.binary(max_size=40))
def test_quoting_is_printable_and_has_an_inverse(raw: bytes) -> None:
    text = quote(raw)
    assert unquote(text) == raw
    assert text.isascii()
    assert text.isprintable()
    assert '"' not in text
    assert "\\" not in text


@pytest.mark.parametrize("text", ["%41", "%e4", "é", "%", "%zz", "%2", "\udcff", "a\nb", '"'])
def test_a_quoting_that_we_would_not_write_is_refused(text: str) -> None:
    with pytest.raises((MalformedManifest, ValueError)):
        unquote(text)


# ---- what stands in a manifest ----


def test_the_text_can_be_read_by_people_and_short_scripts() -> None:
    header, *entries, last = encode(EXAMPLE).decode().splitlines()
    assert json.loads(header) == {
        "fuse_tier_manifest": 1,
        "identity": "default/llama/slice-0-3",
        "number": 12,
        "run": "exp-7",
        "owner_uid": "0b9c",
        "world_size": 8,
        "topology": "2x4",
        "node": "node-a",
        "created_ns": 1_700_000_000_000_000_000,
        "entries": 7,
    }
    assert json.loads(entries[5])["path"] == "step_100/rank 0.bin"
    assert json.loads(entries[5])["xxh3_128"] == BLOB.digest.hex()
    assert list(json.loads(last)) == ["xxh3_128"]
    assert decode(encode(EXAMPLE)) == EXAMPLE


def test_a_manifest_knows_its_blobs_its_size_and_its_time() -> None:
    assert EXAMPLE.blobs == {BLOB}
    assert EXAMPLE.size == 8
    assert EXAMPLE.created == "2023-11-14T22:13:20Z"
    assert manifest_of().blobs == frozenset()


def test_a_manifest_may_name_content_that_is_nowhere() -> None:
    nowhere = Blob(bytes(16), (1 << 63) - 1)
    manifest = manifest_of(Entry(b"weights", Kind.FILE, blob=nowhere))
    assert decode(encode(manifest)).blobs == {nowhere}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([file(b"../etc/passwd")], "not in a directory|leave the volume"),
        ([file(b"..")], "leave the volume"),
        ([file(b".")], "leave the volume"),
        ([Entry(b"a", Kind.DIRECTORY), file(b"a/..")], "leave the volume"),
        ([Entry(b"a", Kind.DIRECTORY), file(b"a/")], "leave the volume"),
        ([Entry(b"a", Kind.DIRECTORY), Entry(b"a/..", Kind.DIRECTORY), file(b"a/../b")], "leave the volume"),
        ([file(b"/etc/passwd")], "absolute path"),
        ([file(b"//")], "absolute path"),
        ([file(b"a\0b")], "no file name"),
        ([file(b"x" * 256)], "no file name"),
        ([file(b"a"), file(b"a")], "'a' stands in the manifest twice"),
        ([file(b"b"), file(b"a")], "'a' is out of order"),
        ([ROOT], "'' stands in the manifest twice"),
        ([file(b"a/b")], "not in a directory"),
        ([file(b"a"), file(b"a/b")], "not in a directory"),
        ([Entry(b"a", Kind.SYMLINK, target=b"/etc"), file(b"a/passwd")], "not in a directory"),
        ([Entry(b"a", Kind.FILE)], "is a file and has none"),
        ([Entry(b"a", Kind.FIFO, blob=BLOB)], "has content and is no file"),
        ([Entry(b"a", Kind.HARDLINK, blob=BLOB, target=b"b")], "has content and is no file"),
        ([Entry(b"a", Kind.SYMLINK)], "is a link and has none"),
        ([file(b"a", target=b"b")], "has a target and is no link"),
        ([Entry(b"a", Kind.SYMLINK, target=b"")], "no symbolic link can have"),
        ([Entry(b"a", Kind.SYMLINK, target=b"x" * 4096)], "no symbolic link can have"),
        ([Entry(b"a", Kind.SYMLINK, target=b"x\0")], "no symbolic link can have"),
        ([Entry(b"a", Kind.HARDLINK, target=b"b"), file(b"b")], "hard link to no earlier file"),
        ([Entry(b"a", Kind.HARDLINK, target=b"a")], "hard link to no earlier file"),
        ([Entry(b"a", Kind.HARDLINK, target=b"../../etc/shadow")], "hard link to no earlier file"),
        ([Entry(b"a", Kind.DIRECTORY), Entry(b"b", Kind.HARDLINK, target=b"a")], "hard link to no earlier file"),
        ([file(b"a"), Entry(b"b", Kind.HARDLINK, 0o644, target=b"a")], "not its first name's"),
        ([file(b"a"), Entry(b"b", Kind.HARDLINK, target=b"a", xattrs=((b"user.x", b""),))], "not its first name's"),
        ([Entry(b"a", Kind.DIRECTORY, 0o10000)], "only permission bits"),
        ([Entry(b"a", Kind.DIRECTORY, 0o060000)], "only permission bits"),
        ([Entry(b"a", Kind.DIRECTORY, -1)], "only permission bits"),
        ([Entry(b"a", Kind.DIRECTORY, uid=-1)], "owner or a time out of range"),
        ([Entry(b"a", Kind.DIRECTORY, gid=1 << 32)], "owner or a time out of range"),
        ([Entry(b"a", Kind.DIRECTORY, mtime_ns=1 << 63)], "owner or a time out of range"),
        ([file(b"a", xattrs=((b"user.b", b""), (b"user.a", b"")))], "out of order or twice"),
        ([file(b"a", xattrs=((b"user.a", b""), (b"user.a", b"")))], "out of order or twice"),
        ([file(b"a", xattrs=((b"security.capability", b""),))], "none of a user's"),
        ([file(b"a", xattrs=((b"trusted.overlay", b""),))], "none of a user's"),
        ([file(b"a", xattrs=((b"user.fuse_tier.state", b"sealed"),))], "none of a user's"),
        ([file(b"a", xattrs=((b"user.", b""),))], "none of a user's"),
        ([file(b"a", xattrs=((b"user." + b"x" * 251, b""),))], "none of a user's"),
        ([file(b"a", xattrs=((b"user.x", bytes(65537)),))], "65537 bytes"),
        ([Entry(b"a", Kind.FIFO, xattrs=((b"user.x", b""),))], "only files and directories"),
    ],
)
def test_a_tree_that_must_not_be_made_is_refused_whole(entries: list[Entry], message: str) -> None:
    manifest = manifest_of(*entries)
    with pytest.raises(MalformedManifest, match=message):
        validate(manifest.entries)
    with pytest.raises(MalformedManifest, match=message):
        encode(manifest)


@pytest.mark.parametrize("entries", [(), (file(b"a"),), (Entry(b"", Kind.FIFO),), (Entry(b"a", Kind.DIRECTORY),)])
def test_a_tree_begins_with_its_root(entries: tuple[Entry, ...]) -> None:
    with pytest.raises(MalformedManifest, match="root directory"):
        encode(replace(EXAMPLE, entries=entries))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(0, fuse_tier_manifest=2), "newer version"),
        (changed(0, fuse_tier_manifest=2) + b"whatever ends it", "newer version"),
        (changed(0, fuse_tier_manifest=True), "must be of type int"),
        (changed(0, fuse_tier_manifest=None), "fuse_tier_manifest"),
        (changed(0, surprise=1), "unknown key 'surprise'"),
        (changed(0, identity="../../etc"), "no valid part"),
        (changed(0, identity="default/llama"), "three parts"),
        (changed(0, number=0), "out of range"),
        (changed(0, number="12"), "must be of type int"),
        (changed(0, number=12.0), "must be of type int"),
        (changed(0, run="../x"), "run"),
        (changed(0, owner_uid="a b"), "owner uid"),
        (changed(0, world_size=-1), "world size"),
        (changed(0, world_size=1 << 31), "world size"),
        (changed(0, topology="a/b"), "topology"),
        (changed(0, node="a/b"), "no node name"),
        (changed(0, created_ns=-1), "time is out of range"),
        (changed(0, entries=6), "number of entries"),
        (changed(1, kind="c"), "of kind 'c'"),
        (changed(1, kind="b"), "of kind 'b'"),
        (changed(1, kind="s"), "of kind 's'"),
        (changed(1, kind=None), "kind"),
        (changed(1, surprise=[]), "unknown key 'surprise'"),
        (changed(1, mode="755"), "must be of type int"),
        (changed(1, mode=True), "must be of type int"),
        (changed(2, path="%6catest"), "canonical quoting"),
        (changed(2, path=["latest"]), "must be of type str"),
        (changed(3, xattrs=[]), "must be of type dict"),
        (changed(3, xattrs={}), "canonical form"),
        (changed(3, xattrs={"user.a": 1}), "must be of type str"),
        (changed(5, size=-1), "no blob"),
        (changed(5, size=1 << 63), "no blob"),
        (changed(5, size=None), "size"),
        (changed(5, xxh3_128="00"), "no blob"),
        (changed(5, xxh3_128=BLOB.digest.hex().upper()), "canonical form"),
        (changed(5, xxh3_128="x" * 32), "cannot be read"),
        (changed(7, mode=0o644), "unknown key 'mode'"),
    ],
)
def test_a_text_that_we_would_not_have_written_is_refused_though_its_hash_is_right(text: bytes, message: str) -> None:
    with pytest.raises(MalformedManifest, match=message):
        decode(text)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda line: line.replace(",", ", "),
        lambda line: line + " ",
        lambda line: line.replace('"path":"latest"', '"path":"a","path":"latest"'),
        lambda line: line.replace("latest", "\\u006catest"),
        lambda line: "[" + line + "]",
        lambda line: line.replace('"uid":0', '"uid":-0'),
        lambda line: line.replace('"uid":0', '"uid":0.0'),
        lambda line: line.replace('"uid":0', '"uid":NaN'),
        lambda line: line.replace('"uid":0', '"uid":' + "9" * 5000),
        lambda line: line.replace('"uid":0', '"uid":' + "[" * 100_000),
        lambda line: line + "\r",
        lambda line: line + "\v",
        lambda line: "",
    ],
    ids=range(13),
)
def test_another_spelling_of_the_same_is_refused(rewrite: object) -> None:
    lines = lines_of(EXAMPLE)
    assert callable(rewrite)
    assert rewrite(lines[2]) != lines[2]
    lines[2] = rewrite(lines[2])
    with pytest.raises(MalformedManifest):
        decode(sealed(lines))


def test_a_text_that_is_too_long_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_tier.manifest.MAX_ENCODED_BYTES", 500)
    with pytest.raises(MalformedManifest, match="at most 500"):
        decode(bytes(501))
    with pytest.raises(MalformedManifest, match="at most 500"):
        encode(EXAMPLE)


@pytest.mark.parametrize("fields", [{"node": "a/b"}, {"created_ns": -1}])
def test_what_could_not_be_decoded_is_not_encoded(fields: dict[str, object]) -> None:
    with pytest.raises(MalformedManifest):
        encode(replace(EXAMPLE, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [{"run": ""}, {"run": "a/b"}, {"owner_uid": "a b"}, {"topology": "2 x 4"}, {"world_size": -1}],
)
def test_a_lineage_has_names_that_can_be_compared(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Lineage(**({"run": "exp-7"} | fields))  # type: ignore[arg-type]
