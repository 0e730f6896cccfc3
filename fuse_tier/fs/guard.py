"""The border between our operations and pyfuse3.

Inside, an operation that fails raises OSError with the errno that the job shall see. pyfuse3 ends its loop, and with
it the mount, when anything but a FUSEError leaves an operation: nothing else leaves one that is ``guarded``.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import structlog

log = structlog.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def guarded(
    operation: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Turns OSError into the answer that the kernel gets, and a defect of ours into EIO and a log line."""

    @functools.wraps(operation)
    async def guard(operations: S, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await operation(operations, *args, **kwargs)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("operation.failed", operation=operation.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guard  # type: ignore[return-value]  # the first parameter's name differs
