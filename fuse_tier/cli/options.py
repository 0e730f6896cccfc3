"""What several commands take: kinds of values, and options with one meaning everywhere."""

from __future__ import annotations

import json as json_text
from typing import Any

import click

from fuse_tier.errors import ConfigError
from fuse_tier.identity import Identity, SnapshotId, is_name
from fuse_tier.quantities import parse_duration
from fuse_tier.stepnames import check_pattern

TIERS = ("ram", "peer", "bucket")


class IdentityType(click.ParamType[str]):
    """``NAMESPACE/WORKLOAD/REPLICA``; the value is its text."""

    name = "identity"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What help shows."""
        return "NS/WORKLOAD/REPLICA"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Checks it."""
        try:
            return str(Identity.parse(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class JobType(click.ParamType[str]):
    """``NAMESPACE/WORKLOAD``; the value is its text."""

    name = "job"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What help shows."""
        return "NS/WORKLOAD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Checks it."""
        namespace, slash, workload = value.partition("/")
        if not slash or not is_name(namespace) or not is_name(workload):
            self.fail(f"job {value!r} must have two parts: NAMESPACE/WORKLOAD", param, ctx)
        return str(value)


class SnapshotType(click.ParamType[str]):
    """``NAMESPACE/WORKLOAD/REPLICA@NUMBER``; the value is its text."""

    name = "snapshot"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Checks it."""
        try:
            return str(SnapshotId.parse(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class StepPatternType(click.ParamType[str]):
    """What a job calls its steps; the value is its text."""

    name = "pattern"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Checks it."""
        try:
            check_pattern(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class SecondsType(click.ParamType[float]):
    """``90``, ``90s`` or ``5m``; the value is seconds."""

    name = "duration"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What help shows."""
        return "SECONDS|5m"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads it."""
        try:
            return parse_duration(float(value) if _is_number(value) else value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


node_option = click.option(
    "--node",
    "socket",
    metavar="SOCKET",
    type=click.Path(),
    help="The node's unix socket. [default: $FUSE_TIER_NODE, else /run/fuse-tier/node.sock]",
)
bucket_option = click.option("--bucket", metavar="gs://BUCKET[/PREFIX]", help="Ask this bucket, and no node.")
endpoint_option = click.option("--endpoint", metavar="URL", help="With --bucket: an emulator's.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
config_option = click.option("--config", "config_path", metavar="FILE", required=True, type=click.Path())


def print_json(facts: object, *, compact: bool = False) -> None:
    """Facts on stdout, for programs."""
    click.echo(json_text.dumps(facts, ensure_ascii=True, indent=None if compact else 2))
