"""Who a peer is, and whether this node can work with it: decided from its answer to hello, before all else."""

from __future__ import annotations

from dataclasses import dataclass

from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.members import PROTOCOL


@dataclass(frozen=True, slots=True)
class Introduction:
    """What this node says of itself to a peer."""

    cluster: str
    node: str
    instance: str  # random, new at each start of the worker


def why_refused(reply: pb.HelloReply, own: Introduction, expected: str | None) -> str | None:
    """What is wrong with a peer, said after its name; None when it is one to work with.

    ``expected`` is who it should be, None where only its address is known.
    """
    if reply.protocol != PROTOCOL:
        return (
            f"runs fuse-tier {reply.version} with protocol {reply.protocol}, and this node speaks "
            f"protocol {PROTOCOL}: run versions of one major protocol on all nodes"
        )
    if reply.cluster != own.cluster:
        return (
            f"belongs to cluster {reply.cluster!r}, and this node to {own.cluster!r}: correct the "
            "cluster or the peers' addresses in node.yaml"
        )
    if reply.node == own.node and reply.instance == own.instance:
        return "is this node itself: take its address out of peers in node.yaml"
    if reply.node == own.node:
        return (
            f"has this node's name {own.node!r}: two nodes of one name would take each other's "
            "copies for their own; give one of them another name in node.yaml"
        )
    if expected is not None and reply.node != expected:
        return f"is node {reply.node!r}: correct the address, or wait until the coordinator has noticed"
    return None
