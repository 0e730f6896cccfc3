"""Places for connections that have not shown yet who they are: not those of who is in, and not all for one host.

Who comes in floods is in the way of itself, and of nobody who is in. One for each port; lives in the trio thread.
"""

from __future__ import annotations

from collections import Counter

_HOSTS = 4  # have to come in floods before another finds no place


class Strangers:
    """Who is being let in; ``most`` is of all hosts together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_a_host = max(1, most // _HOSTS)
        self._here: Counter[str] = Counter()  # by host

    def enter(self, host: str) -> str | None:
        """Takes a place; gives the reason when there is none, and then nothing is to be left."""
        if self._here[host] >= self._most_of_a_host:
            return f"{self._most_of_a_host} others of its host are being let in"
        if self._here.total() >= self._most:
            return f"{self._most} others are being let in"
        self._here[host] += 1
        return None

    def leave(self, host: str) -> None:
        """It is in, or has gone."""
        self._here[host] -= 1
        if not self._here[host]:
            del self._here[host]
