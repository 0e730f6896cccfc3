"""A worker that replicates nothing, for what a real one does only rarely: refuse, be deaf, drain for long.

Run as ``python standin_worker.py MODE --config FILE``; what happens to it is written to FILE's ``.events``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(mode: str, config: str) -> int:
    events = Path(config).with_suffix(".events")

    def note(event: str) -> None:
        with events.open("a") as file:
            file.write(f"{event}\n")

    wanted = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    note(f"started {os.getpid()}")
    starts = events.read_text().count("started")
    if mode.startswith("refuses-later") and starts == 2:
        return 1
    if mode.startswith("refuses-with-"):
        return int(mode.removeprefix("refuses-with-"))
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    while True:
        note(signal.Signals(signal.sigwait(wanted)).name)
        if mode == "deaf" or (mode == "drains" and events.read_text().count("SIGTERM") == 1):
            continue
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[3]))
