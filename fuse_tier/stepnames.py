"""Which names at the root of a volume are a step's: as frameworks name what they save, or by a pattern of the job's.

A pattern is a name in which ``{step}`` stands for the number and ``*`` for anything; all else is itself. No regular
expressions: one of those can take longer on a name than a job lasts, and these cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from fuse_tier.errors import ConfigError

STEP: Final = "{step}"
_NUMBER: Final = rb"([0-9]{1,18})"
_LONGEST: Final = 255  # linux/limits.h, NAME_MAX
_MOST_STARS: Final = 2  # each may be tried at each byte of a name

# How frameworks name what they save; a temporary name matches none of them.
_BY_FRAMEWORKS: Final = (
    re.compile(rb"([0-9]{1,18})"),  # Orbax, MaxText, PyTorch DCP
    re.compile(rb"(?:step|checkpoint|ckpt|global_step|iter|epoch)[_=-]?([0-9]{1,18})"),  # HF, DeepSpeed, Megatron
    re.compile(rb"step[_=-]([0-9]{1,18})\.(?:pt|pth|ckpt|safetensors|npz|bin)"),
    # Lightning, which says the epoch first, may add a metric, and counts what it would overwrite.
    re.compile(rb"epoch[_=-]?[0-9]{1,18}-step[_=-]?([0-9]{1,18})(?:-v[0-9]{1,18})?(?:\.ckpt)?"),
    re.compile(
        rb"[A-Za-z0-9._-]+-s([0-9]{1,18})-n[0-9]+-w[0-9]+\.(?:save|restore)"
    ),  # the replicator's file protocol
)


def step_in(name: bytes, pattern: str = "") -> int | None:
    """The step that has a name; None when it is none's. With a pattern no other names are a step's."""
    for expression in (_compiled(pattern),) if pattern else _BY_FRAMEWORKS:
        if match := expression.fullmatch(name):
            return int(match[1])
    return None


def newest_step(names: Iterable[bytes], pattern: str = "") -> int | None:
    """The highest step among names; None when there is none."""
    steps = (step for name in names if (step := step_in(name, pattern)) is not None)
    return max(steps, default=None)


def check_pattern(pattern: str) -> None:
    """Raises ConfigError for what is no pattern, and says what one is."""
    wrong = _what_is_wrong(pattern)
    if wrong:
        raise ConfigError(
            f"step pattern {pattern[:80]!r} {wrong}: write the name of a step at the root of the volume, with {STEP} "
            "where its number stands and * for what may be anything, such as model-{step}.pt or run-*-{step}"
        )


def _what_is_wrong(pattern: str) -> str:
    if pattern.count(STEP) != 1:
        return f"has {STEP} {pattern.count(STEP)} times, and not once"
    if "/" in pattern:
        return "has a '/': only names at the root of the volume count"
    if not pattern.isprintable() or not pattern.isascii():
        return "is not of printable ASCII characters"
    if len(pattern) > _LONGEST:
        return f"has {len(pattern)} characters, and no name has more than {_LONGEST}"
    if pattern.count("*") > _MOST_STARS:
        return f"has {pattern.count('*')} times '*', and not at most {_MOST_STARS} times"
    return ""


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[bytes]:
    # As little as will do for each '*', so that none of the number's digits go to one before it.
    parts = [b".*?".join(map(re.escape, part.encode().split(b"*"))) for part in pattern.split(STEP)]
    return re.compile(_NUMBER.join(parts), re.DOTALL)
