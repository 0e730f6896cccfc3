"""Whom a node talks to: its own socket, the coordinator, and the other nodes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

import trio

from fuse_tier.config import NodeConfig
from fuse_tier.deadlines import Deadline
from fuse_tier.doctor.finding import Finding
from fuse_tier.errors import ConfigError, FuseTierError
from fuse_tier.quantities import format_count
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import CoordinatorStub, NodeStub, PeerStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import PROTOCOL
from fuse_tier.wire.tls import TlsFiles, check

_NAMED_AT_MOST = 20


async def examine(config: NodeConfig) -> list[Finding]:
    """Asks each for what it is; nothing is changed."""
    tls = TlsFiles(config.tls.ca, config.tls.cert, config.tls.key) if config.tls else None
    found = [await _node(config)]
    try:
        if tls is not None:
            check(tls)
    except ConfigError:
        return [*found, Finding.skipped("peers", "without usable certificates")]
    addresses = {str(peer): "" for peer in config.peers}
    if config.coordinator is not None:
        finding, addresses = await _coordinator(config, tls)
        found.append(finding)
    elif not config.peers:
        found.append(Finding.ok("peers", "this node is alone, as it is configured: it keeps no copies elsewhere"))
    return found + await _all_peers(config, tls, addresses)


async def _node(config: NodeConfig) -> Finding:
    try:
        is_socket = stat.S_ISSOCK(os.stat(config.socket).st_mode)
    except OSError:
        is_socket = False
    start = "start it: `fuse-tier node --config FILE`"
    if not is_socket:
        return Finding.warning("node", f"it does not run: {config.socket} is not there", start)
    async with Client(f"unix:{config.socket}", NodeStub, None) as client:
        try:
            await client.call("Status", pb.Empty(), Deadline.STATUS)
        except FuseTierError as error:
            return Finding.failed("node", str(error), f"see its log; {start}")
    return Finding.ok("node", f"it answers on {config.socket}")


async def _coordinator(config: NodeConfig, tls: TlsFiles | None) -> tuple[Finding, dict[str, str]]:
    """The coordinator, and the addresses and names of the other nodes that it knows to be alive."""
    address = str(config.coordinator)
    name = config.tls.coordinator if config.tls else None
    async with Client(address, CoordinatorStub, tls, name) as client:
        try:
            picture: pb.PictureReply = await client.call("Picture", pb.Empty(), Deadline.CONTROL_CALL)
        except FuseTierError as error:
            remedy = "start it (`fuse-tier coordinator`), or correct `coordinator`"
            return Finding.failed("coordinator", str(error), remedy), {}
    alive = [member for member in picture.members if member.alive]
    others = {member.addresses.control: member.node for member in alive if member.node != config.node}
    detail = f"{address} answers, and knows {format_count(len(alive), 'live node')}"
    gone = sorted(member.node for member in picture.members if not member.alive)
    if gone:
        named = ", ".join(gone[:_NAMED_AT_MOST])
        return Finding.warning(
            "coordinator", f"{detail}; gone: {named}", "bring them back, if they should be there"
        ), others
    return Finding.ok("coordinator", detail), others


async def _all_peers(config: NodeConfig, tls: TlsFiles | None, addresses: dict[str, str]) -> list[Finding]:
    found: dict[str, Finding] = {}

    async def ask(address: str) -> None:
        found[address] = await _peer(config, tls, address, addresses[address])

    async with trio.open_nursery() as nursery:
        for address in list(addresses)[:_NAMED_AT_MOST]:
            nursery.start_soon(ask, address)
    return [found[address] for address in sorted(found)] + list(_unlooked(len(addresses) - len(found)))


def _unlooked(count: int) -> Iterable[Finding]:
    if count:
        yield Finding.skipped("peers", f"{format_count(count, 'further node')} were not asked")


async def _peer(config: NodeConfig, tls: TlsFiles | None, address: str, name: str) -> Finding:
    check_name = f"peer {name or address}"
    request = pb.HelloRequest(protocol=PROTOCOL, cluster=config.cluster, node=config.node, instance="doctor")
    async with Client(address, PeerStub, tls, name or None) as client:
        try:
            reply: pb.HelloReply = await client.call("Hello", request, Deadline.CONTROL_CALL)
        except FuseTierError as error:
            return Finding.failed(
                check_name, str(error), "see that it runs, and that nothing between filters its ports"
            )
    if reply.protocol != PROTOCOL or reply.cluster != config.cluster:
        detail = f"{address} is {reply.node} of cluster {reply.cluster!r}, protocol {reply.protocol}"
        return Finding.failed(check_name, detail, "give both the same cluster, and the same major version")
    if not await _listens(reply.bulk):
        return Finding.failed(check_name, f"{reply.node} answers, but not at {reply.bulk}, where content goes",
                              "open that port between the nodes")  # fmt: skip
    return Finding.ok(check_name, f"{reply.node} answers at {address} and {reply.bulk}, version {reply.version}")


async def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with trio.move_on_after(Deadline.BULK_CONNECT):
        try:
            stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
        except (OSError, ValueError):
            return False
        await trio.aclose_forcefully(stream)
        return True
    return False
