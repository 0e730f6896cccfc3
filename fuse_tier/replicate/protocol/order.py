"""What a framework asks for in ``replicator.yaml``: read strictly, with the key and the line of what is wrong.

Pure: nothing here looks at a mount. ``${NAME}`` is what this process's environment has; a whole number may be text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from fuse_tier.config_errors import problems_of
from fuse_tier.errors import ConfigError
from fuse_tier.protocolfiles import ORDER
from fuse_tier.replicate.backup import BackupPolicy
from fuse_tier.yamlfile import Document, Problem, parse

Framework = Literal["orbax", "pytorch", "pytorch.distributed"]
FRAMEWORKS: Final[tuple[str, ...]] = get_args(Framework)

_JOB_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,148}[A-Za-z0-9])?")
_DIGITS: Final = re.compile(r"[+-]?[0-9]{1,18}")
_MOST_NODES: Final = 1_000_000
_MOST_WORKERS: Final = 1024
_MOST_INTERVAL: Final = 10**9
_MOST_PORT: Final = 65535
_DEBUG_BACKUP: Final = "REPLICATION_WORKER_DEBUG_BACKUP"


def _whole(value: Any) -> Any:
    """Text that is a whole number is one: job templates make values of all kinds to text."""
    return int(value) if isinstance(value, str) and _DIGITS.fullmatch(value.strip()) else value


def _job_name(value: Any) -> str:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not _JOB_NAME.fullmatch(text):
        reason = (
            f"{value!r} is no job's name: give at most 150 letters, digits, '.', '_' and '-', as a part of file names"
        )
        raise PydanticCustomError("config", "{reason}", {"reason": reason})
    return text


_Whole = BeforeValidator(_whole)
_Rank = Annotated[int, _Whole, Field(ge=0, le=_MOST_NODES - 1, strict=True)]
_Interval = Annotated[int, _Whole, Field(ge=0, le=_MOST_INTERVAL, strict=True)]


class _Keys(BaseModel):
    """The keys of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_name: Annotated[str, BeforeValidator(_job_name)] = Field(alias="job-name")
    framework: Framework
    node_rank: _Rank = Field(alias="node-rank")
    nodes: Annotated[int, _Whole, Field(ge=1, le=_MOST_NODES, strict=True)]
    peer_ranks: tuple[_Rank, ...] | None = Field(default=None, alias="peer-ranks")
    peers_per_node: Annotated[int, _Whole, Field(ge=0, le=_MOST_NODES, strict=True)] | None = Field(
        default=None, alias="peers-per-node"
    )
    minutes: _Interval | None = Field(default=None, alias="backup-interval-minutes")
    steps: Annotated[int, _Whole, Field(ge=1, le=_MOST_INTERVAL, strict=True)] | None = Field(
        default=None, alias="backup-interval-steps"
    )
    parallelism: Annotated[int, _Whole, Field(ge=1, le=_MOST_NODES, strict=True)] | None = Field(
        default=None, alias="assume-data-parallelism"
    )
    workers: Annotated[int, _Whole, Field(ge=1, le=_MOST_WORKERS, strict=True)] = Field(
        default=1, alias="workers-per-node"
    )
    port: Annotated[int, _Whole, Field(ge=1, le=_MOST_PORT, strict=True)] = Field(default=4242, alias="master-port")

    @model_validator(mode="after")
    def _check_rules(self) -> _Keys:
        broken = list(self._broken())
        if broken:
            text = "; ".join(f"{key}: {message}" for key, message in broken)
            raise PydanticCustomError("rules", "{text}", {"text": text, "broken": broken})
        return self

    def _broken(self) -> Iterator[tuple[str, str]]:
        if self.node_rank >= self.nodes:
            yield "node-rank", f"{self.node_rank} is out of range: of {self.nodes} nodes the last is {self.nodes - 1}"
        for rank in self.peer_ranks or ():
            if rank >= self.nodes or rank == self.node_rank:
                yield (
                    "peer-ranks",
                    f"{rank} is no other node's: give ranks from 0 to {self.nodes - 1} but {self.node_rank}",
                )
        if self.peer_ranks is not None and len(set(self.peer_ranks)) < len(self.peer_ranks):
            yield "peer-ranks", "a rank stands there twice: give each once"
        if (self.minutes is None) == (self.steps is None):
            key = "backup-interval-steps" if self.steps is not None else "backup-interval-minutes"
            yield key, "give exactly one of backup-interval-minutes (0: every step) and backup-interval-steps"
        if self.parallelism is not None and self.nodes % self.parallelism:
            yield "assume-data-parallelism", f"{self.nodes} nodes are not {self.parallelism} groups of one size"


@dataclass(frozen=True, slots=True)
class Order:
    """What one node of a job asks for."""

    job: str
    framework: str
    node_rank: int
    nodes: int
    workers: int = 1
    minutes: int | None = None  # between backups; 0: every step
    steps: int | None = None
    parallelism: int | None = None  # groups of nodes that hold the same state

    def is_partner(self, node_rank: int) -> bool:
        """Whether a node has the same part of the state as this one, or is this one."""
        part = self.nodes // (self.parallelism or 1)
        return node_rank < self.nodes and node_rank % part == self.node_rank % part

    @property
    def backs_up(self) -> bool:
        """Whether this node is of the group whose data goes to the bucket: the last one."""
        return self.node_rank >= self.nodes - self.nodes // (self.parallelism or 1)

    @property
    def backups(self) -> BackupPolicy:
        """Which steps go to the bucket."""
        if os.environ.get(_DEBUG_BACKUP, "").lower() == "true":
            return BackupPolicy(steps="odd", on_demand=not self.backs_up)
        every = 60.0 * self.minutes if self.minutes else None
        return BackupPolicy(every, self.steps, on_demand=not self.backs_up)


def read_order(content: bytes) -> Order:
    """Raises ConfigError, one line for each thing that is wrong, with its key."""
    name = os.fsdecode(ORDER)
    document = parse(content, name)
    if not isinstance(document.value, dict):
        raise ConfigError(f"{name}:1: is no list of keys and values: write job-name: NAME, and so on")
    try:
        keys = _Keys.model_validate(_without_nothing(document.value))
    except ValidationError as error:
        raise document.error(_told(error, document)) from error
    return Order(
        keys.job_name,
        keys.framework,
        keys.node_rank,
        keys.nodes,
        keys.workers,
        keys.minutes,
        keys.steps,
        keys.parallelism,
    )


def _without_nothing(values: dict[str, Any]) -> dict[str, Any]:
    """Optional keys that templates leave empty are as good as not there."""
    return {key: value for key, value in values.items() if value is not None}


def _told(error: ValidationError, document: Document) -> Iterator[Problem]:
    yield from problems_of(error, _Keys, document)
