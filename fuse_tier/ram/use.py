"""Who uses a file of the RAM tier at this moment, as the kernel counts it.

A mount's daemon knows what is open through the mount. It does not know of mappings: with passthrough the kernel maps
the file of the tmpfs itself, and the job may close its descriptor and write (or read) on through memory for hours. So
before content is taken for finished, or given up, the kernel is asked. It answers through leases (fcntl(2)): one is
granted only while nobody else has the file open or mapped in a way that would conflict. It is given back at once.

Where leases are switched off (``/proc/sys/fs/leases-enable``) nobody can tell, and the answer is that nobody does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal

# The default, SIGIO, would end this process if somebody opened the file just now; this one is ignored.
_HARMLESS = signal.SIGURG


def is_written(path: str) -> bool:
    """Whether anybody has a file open for writing, or mapped from such a descriptor. Raises OSError."""
    return _is_refused(path, fcntl.F_RDLCK)


def is_used(path: str) -> bool:
    """Whether anybody but the caller, for the time of this call, has a file open or mapped. Raises OSError."""
    return _is_refused(path, fcntl.F_WRLCK)


def _is_refused(path: str, lease: int) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, _HARMLESS)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, lease)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EBUSY):
                return True
            if error.errno != errno.EINVAL:
                raise
        return False
    finally:
        os.close(fd)  # gives the lease back
