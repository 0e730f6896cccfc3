"""A job that computes: steps that are bound by memory, on one core, each timed.

``python -m fuse_tier.bench.stepping CORE`` writes a space when it begins, steps until its stdin ends, and then writes
a JSON list of the begin and the length of each step, in seconds of the machine's monotonic clock.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

import numpy as np

_ELEMENTS = 4 << 20  # of three arrays of doubles: 96 MiB, more than any cache


def main() -> None:
    """Steps."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    weights, gradient = np.ones(_ELEMENTS), np.full(_ELEMENTS, 1e-9)
    scratch = np.empty(_ELEMENTS)
    steps: list[tuple[float, float]] = []
    sys.stdout.write(" ")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0)[0]:
        begun = time.monotonic()
        np.multiply(gradient, 0.5, out=scratch)
        np.subtract(weights, scratch, out=weights)
        steps.append((begun, time.monotonic() - begun))
    json.dump(steps, sys.stdout)


if __name__ == "__main__":
    main()
