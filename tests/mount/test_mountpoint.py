from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest

from fuse_tier.errors import MountError
from fuse_tier.mount.mountpoint import MountpointBusy, abort_connection, check_mountpoint, is_ours, unmount
from fuse_tier.mount.table import mount_at
from tests.mount.conftest import TinyFs, as_user

NOBODY = 65534


def complaint(path: Path | str, ram_root: Path | None = None) -> str:
    with pytest.raises(MountError) as caught:
        check_mountpoint(str(path), None if ram_root is None else str(ram_root))
    return str(caught.value)


def test_an_empty_directory_is_fine(mountpoint: Path, tmp_path: Path) -> None:
    check_mountpoint(str(mountpoint), str(tmp_path))


def test_a_relative_path_is_refused() -> None:
    assert complaint("mnt") == "mountpoint 'mnt' is no absolute path: give it from the root"


def test_a_missing_directory_is_named_with_the_command_that_makes_it(place: Path) -> None:
    path = place / "missing"
    assert complaint(path) == f"mountpoint {path} does not exist: create it with `mkdir -p {path}`"


def test_a_path_below_a_file_does_not_exist(place: Path) -> None:
    (place / "file").touch()
    path = place / "file" / "mnt"
    assert complaint(path) == f"mountpoint {path} does not exist: a part of its path is a file; choose another"


def test_a_file_is_refused(place: Path) -> None:
    (place / "file").touch()
    assert complaint(place / "file") == f"mountpoint {place}/file is a file: give an empty directory"


def test_what_is_neither_file_nor_directory_is_named(place: Path) -> None:
    os.mkfifo(place / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "socket"))
    for kind in ("pipe", "socket"):
        path = place / kind
        assert complaint(path) == f"mountpoint {path} is no directory (it is a {kind}): give an empty directory"
    assert complaint("/dev/null") == "mountpoint /dev/null is no directory (it is a device): give an empty directory"


def test_a_symlink_is_refused_and_says_where_it_leads(place: Path, mountpoint: Path) -> None:
    (place / "link").symlink_to(mountpoint)
    assert complaint(place / "link") == (
        f"mountpoint {place}/link is a symlink to {mountpoint}: give the directory itself"
    )


def test_a_directory_with_files_is_refused_because_they_would_be_hidden(mountpoint: Path) -> None:
    (mountpoint / "file").touch()
    assert complaint(mountpoint) == (
        f"mountpoint {mountpoint} is not empty, and a mount would hide its files: give an empty directory"
    )


def test_a_name_that_no_filesystem_takes_is_refused(place: Path) -> None:
    path = place / ("x" * 300)
    assert complaint(path) == f"mountpoint {path} cannot be used: File name too long: choose another directory"


def test_a_mount_would_never_be_in_or_over_the_ram_tier(place: Path, mountpoint: Path) -> None:
    (mountpoint / "ram" / "inner").mkdir(parents=True)
    ram = mountpoint / "ram"
    assert complaint(ram / "inner", ram) == (
        f"mountpoint {ram}/inner lies inside the RAM tier {ram}: choose a directory outside of it"
    )
    assert complaint(mountpoint, ram) == (
        f"mountpoint {mountpoint} would hide the RAM tier {ram} below it: choose another directory"
    )


def test_links_do_not_lead_into_the_ram_tier_unseen(place: Path) -> None:
    (place / "ram" / "inner").mkdir(parents=True)
    (place / "link").symlink_to(place / "ram")
    assert "lies inside the RAM tier" in complaint(place / "link" / "inner", place / "ram")
    assert "lies inside the RAM tier" in complaint(place / "ram" / "inner", place / "link")


@pytest.mark.root
def test_another_filesystem_is_left_alone(mountpoint: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "stranger", str(mountpoint)], check=True)
    assert complaint(mountpoint) == (
        f"mountpoint {mountpoint} is in use by another filesystem (tmpfs from stranger): "
        "unmount that, or choose another directory"
    )
    assert not is_ours(str(mountpoint))


@pytest.mark.fuse
def test_another_fuse_filesystem_is_left_alone(mountpoint: Path, tiny_mount: TinyFs) -> None:
    tiny_mount(mountpoint, "stranger")
    assert complaint(mountpoint) == (
        f"mountpoint {mountpoint} is in use by another filesystem (fuse.stranger from tiny): "
        "unmount that, or choose another directory"
    )
    assert not is_ours(str(mountpoint))


@pytest.mark.fuse
def test_a_volume_that_is_mounted_is_named_with_the_command_that_ends_it(
    mountpoint: Path, tiny_mount: TinyFs
) -> None:
    tiny_mount(mountpoint)
    assert is_ours(str(mountpoint))
    assert complaint(mountpoint) == (
        f"mountpoint {mountpoint} is a mounted volume already: end that with `fuse-tier unmount {mountpoint}`"
    )


@pytest.mark.fuse
def test_a_directory_inside_a_volume_is_refused(mountpoint: Path, tiny_mount: TinyFs) -> None:
    tiny_mount(mountpoint)
    assert complaint(mountpoint / "below") == (
        f"mountpoint {mountpoint}/below lies inside the volume mounted at {mountpoint}: choose one outside of it"
    )


@pytest.mark.fuse
def test_a_dead_mount_is_named_with_the_command_that_removes_it(mountpoint: Path, tiny_mount: TinyFs) -> None:
    process = tiny_mount(mountpoint)
    os.stat(mountpoint)  # the kernel caches what it says, and must not be believed later
    process.kill()
    process.wait()
    assert complaint(mountpoint) == (
        f"mountpoint {mountpoint} holds a dead mount (fuse.fuse_tier), whose process has ended: "
        f"remove it with `fusermount3 -u {mountpoint}`, then mount again"
    )
    assert is_ours(str(mountpoint))
    subprocess.run(["fusermount3", "-u", str(mountpoint)], check=True)
    check_mountpoint(str(mountpoint))


@pytest.mark.root
def test_an_ordinary_user_needs_a_directory_of_its_own(place: Path, mountpoint: Path) -> None:
    check = partial(check_mountpoint, str(mountpoint))
    assert as_user(NOBODY, check) == (
        f"mountpoint {mountpoint} may not be read and written by user {NOBODY}: "
        "choose a directory of your own, or run the node as root"
    )
    mountpoint.chmod(0o1777)
    assert as_user(NOBODY, check) == (
        f"mountpoint {mountpoint} is a shared (sticky) directory that does not belong to user {NOBODY}: "
        "create a directory of your own in it"
    )
    os.chown(mountpoint, NOBODY, NOBODY)
    assert "read and written" not in as_user(NOBODY, check)
    place.chmod(0o700)
    assert as_user(NOBODY, check) == (
        f"mountpoint {mountpoint} is out of reach: a directory above it may not be entered by user {NOBODY}; "
        "choose another directory"
    )


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.skipif(
    os.access("/dev/fuse", os.F_OK) and os.stat("/dev/fuse").st_mode & 0o006 != 0, reason="is for all"
)
def test_an_ordinary_user_is_told_that_the_device_is_roots(mountpoint: Path) -> None:
    os.chown(mountpoint, NOBODY, NOBODY)
    assert as_user(NOBODY, partial(check_mountpoint, str(mountpoint))) == (
        f"{mountpoint} cannot be mounted: /dev/fuse may not be opened by user {NOBODY}: "
        "let root `chmod 666 /dev/fuse`, which is usual, or run the node as root"
    )


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.usefixtures("fuse_for_all")
def test_an_ordinary_user_may_mount_on_a_directory_of_its_own(mountpoint: Path) -> None:
    os.chown(mountpoint, NOBODY, NOBODY)
    assert as_user(NOBODY, partial(check_mountpoint, str(mountpoint))) == ""


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.usefixtures("fuse_for_all")
def test_an_ordinary_user_without_fusermount3_is_told_which_package_has_it(mountpoint: Path) -> None:
    os.chown(mountpoint, NOBODY, NOBODY)

    def check() -> None:
        os.environ["PATH"] = "/nowhere"
        check_mountpoint(str(mountpoint))

    assert as_user(NOBODY, check) == (
        f"{mountpoint} cannot be mounted without root: fusermount3 is missing: install Debian's package fuse3"
    )


@pytest.mark.fuse
def test_an_unmount_ends_the_mount_and_its_process(mountpoint: Path, tiny_mount: TinyFs) -> None:
    process = tiny_mount(mountpoint)
    unmount(str(mountpoint), lazy=False)
    assert mount_at(str(mountpoint)) is None
    assert process.wait() == 0


def test_what_is_not_mounted_is_unmounted_already(mountpoint: Path) -> None:
    unmount(str(mountpoint), lazy=False)


@pytest.mark.fuse
def test_a_mount_in_use_is_busy_unless_it_is_unmounted_lazily(mountpoint: Path, tiny_mount: TinyFs) -> None:
    process = tiny_mount(mountpoint)
    with open(mountpoint / "file"):
        with pytest.raises(MountpointBusy, match=f"{mountpoint} is in use: end the processes that use it"):
            unmount(str(mountpoint), lazy=False)
        assert is_ours(str(mountpoint))
        unmount(str(mountpoint), lazy=True)
        assert mount_at(str(mountpoint)) is None
        assert process.poll() is None, "who has the file open still needs it"
    assert process.wait() == 0


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.usefixtures("fuse_for_all")
def test_an_ordinary_user_unmounts_by_fusermount3(mountpoint: Path, tiny_mount: TinyFs) -> None:
    os.chown(mountpoint, NOBODY, NOBODY)
    process = tiny_mount(mountpoint, uid=NOBODY)
    assert is_ours(str(mountpoint))

    def hold_and_unmount() -> None:
        with open(mountpoint / "file"):
            unmount(str(mountpoint), lazy=False)

    assert as_user(NOBODY, hold_and_unmount) == (
        f"{mountpoint} is in use: end the processes that use it, then unmount again"
    )
    assert as_user(NOBODY, partial(unmount, str(mountpoint), lazy=False)) == ""
    assert mount_at(str(mountpoint)) is None
    assert process.wait() == 0


@pytest.mark.root
@pytest.mark.fuse
def test_an_ordinary_user_cannot_unmount_what_root_has_mounted(mountpoint: Path, tiny_mount: TinyFs) -> None:
    tiny_mount(mountpoint)
    text = as_user(NOBODY, partial(unmount, str(mountpoint), lazy=False))
    assert text.startswith(f"{mountpoint} could not be unmounted: fusermount3: ")
    assert text.endswith("only who mounted it, or root, may end it")
    assert is_ours(str(mountpoint))


@pytest.mark.root
@pytest.mark.fuse
def test_an_aborted_connection_frees_who_waits_for_a_stuck_daemon(mountpoint: Path, tiny_mount: TinyFs) -> None:
    process = tiny_mount(mountpoint)
    errors: list[OSError] = []

    def wait_for_it() -> None:
        # The signal may come a moment later than the first question.
        try:
            while True:
                os.statvfs(mountpoint)
        except OSError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait_for_it)
    held = os.open(mountpoint / "file", os.O_RDONLY)
    process.send_signal(signal.SIGUSR1)
    waiting.start()
    abort_connection(str(mountpoint))
    waiting.join()
    assert [error.strerror for error in errors] in (
        ["Transport endpoint is not connected"],
        ["Software caused connection abort"],
    )
    assert is_ours(str(mountpoint)), "a dead mount stays for who has it open"
    with pytest.raises(OSError, match="Transport endpoint"):
        os.close(held)


def test_where_nothing_is_mounted_nothing_is_aborted(mountpoint: Path) -> None:
    abort_connection(str(mountpoint))
