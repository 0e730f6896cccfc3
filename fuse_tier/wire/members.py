"""How the values of ``members.py`` travel in ``control.proto``.

Parsing is strict: names become paths, addresses are connected to, so whatever is malformed is refused here
with InvalidRequest, whole, and everything behind this module can trust its values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fuse_tier import epochs
from fuse_tier.errors import ConfigError, InvalidRequest
from fuse_tier.identity import Identity, SnapshotId, is_name
from fuse_tier.members import Domain, Holdings, Location, Member, Picture, VolumePicture
from fuse_tier.wire import control_pb2 as pb

PROTOCOL = 1  # major version of control.proto: one of another is refused at Hello
MINOR = 9  # grows when something is added, which is then used only with those who know it
_LONGEST_LABEL = 253
_LONGEST_USER = 1024


def parse_identity(text: str) -> Identity:
    """An identity from a peer. Raises InvalidRequest."""
    try:
        return Identity.parse(text)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None


def ownerships_to_wire(
    owned: Mapping[Identity, int], users: Mapping[Identity, str] | None = None
) -> list[pb.Ownership]:
    """Volumes with the epochs under which they are a node's, and who has them there."""
    told = users or {}
    return [
        pb.Ownership(identity=str(identity), epoch=epoch, user=told.get(identity, "")[:_LONGEST_USER])
        for identity, epoch in owned.items()
    ]


def ownerships_from_wire(messages: Iterable[pb.Ownership]) -> dict[Identity, int]:
    """Raises InvalidRequest."""
    return {parse_identity(message.identity): parse_epoch(message.epoch) for message in messages}


def parse_epoch(epoch: int) -> int:
    """An epoch from a peer. Raises InvalidRequest."""
    if epoch > epochs.HIGHEST:
        raise InvalidRequest(f"epoch {epoch} is out of range: the highest is {epochs.HIGHEST}")
    return epoch


def domain_to_wire(domain: Domain) -> pb.Domain:
    """What a node fails together with."""
    return pb.Domain(zone=domain.zone, pool=domain.pool, host=domain.host)


def domain_from_wire(message: pb.Domain) -> Domain:
    """Raises InvalidRequest."""
    return parse_domain(message.zone, message.pool, message.host)


def member_to_wire(member: Member) -> pb.Member:
    """What the coordinator says of a node."""
    return pb.Member(
        node=member.node,
        instance=member.instance,
        addresses=pb.Addresses(control=member.control, bulk=member.bulk),
        alive=member.alive,
        capacity_bytes=member.capacity_bytes,
        free_bytes=member.free_bytes,
        zone=member.domain.zone,
        pool=member.domain.pool,
        host=member.domain.host,
        mounted=sorted(map(str, member.mounted)),
    )


def member_from_wire(message: pb.Member) -> Member:
    """Raises InvalidRequest."""
    return Member(
        node=parse_name(message.node, "node"),
        instance=parse_name(message.instance, "instance"),
        control=parse_address(message.addresses.control),
        bulk=parse_address(message.addresses.bulk),
        alive=message.alive,
        capacity_bytes=message.capacity_bytes,
        free_bytes=message.free_bytes,
        domain=parse_domain(message.zone, message.pool, message.host),
        mounted=frozenset(map(parse_identity, message.mounted)),
    )


def hello_from_wire(message: pb.HelloReply, control: str, domain: Domain) -> Member:
    """The peer that answered at ``control``; ``domain`` is for what it does not say. Raises InvalidRequest."""
    return Member(
        node=parse_name(message.node, "node"),
        instance=parse_name(message.instance, "instance"),
        control=control,
        bulk=parse_address(message.bulk),
        alive=True,
        capacity_bytes=message.capacity_bytes,
        free_bytes=message.free_bytes,
        domain=domain_from_wire(message.domain).or_else(domain),
        mounted=frozenset(map(parse_identity, message.mounted)),
    )


def location_to_wire(location: Location, term: int) -> pb.LocateReply:
    """The answer to Locate, of a coordinator of this term."""
    return pb.LocateReply(
        term=term,
        holders=_holders_to_wire(location),
        bucket=location.bucket,
        unsettled=not location.is_settled,
        copied=location.copied,
        owners=[pb.Owner(node=node, epoch=epoch) for epoch, node in location.owners.items()],
    )


def location_from_wire(message: pb.LocateReply) -> Location:
    """Raises InvalidRequest."""
    location = _location(message.holders, message.bucket)
    return replace(
        location,
        is_settled=not message.unsettled,
        copied=message.copied,
        owners={parse_epoch(owner.epoch): parse_name(owner.node, "node") for owner in message.owners},
    )


def picture_to_wire(picture: Picture) -> pb.PictureReply:
    """The answer to Picture."""
    return pb.PictureReply(
        epoch=picture.epoch,
        members=map(member_to_wire, picture.members),
        volumes=[
            pb.Volume(
                identity=str(volume.identity),
                mounted_on=volume.mounted_on,
                holders=_holders_to_wire(volume.location),
                bucket=volume.location.bucket,
            )
            for volume in picture.volumes
        ],
    )


def picture_from_wire(message: pb.PictureReply) -> Picture:
    """Raises InvalidRequest."""
    return Picture(
        epoch=message.epoch,
        members=tuple(map(member_from_wire, message.members)),
        volumes=tuple(
            VolumePicture(
                parse_identity(volume.identity), volume.mounted_on, _location(volume.holders, volume.bucket)
            )
            for volume in message.volumes
        ),
    )


def numbers_by_identity(ids: Iterable[str]) -> dict[Identity, tuple[int, ...]]:
    """What a list of snapshot ids says, by volume. Raises InvalidRequest."""
    found: dict[Identity, set[int]] = {}
    for text in ids:
        try:
            snapshot = SnapshotId.parse(text)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
        found.setdefault(snapshot.identity, set()).add(snapshot.number)
    return {identity: tuple(sorted(numbers)) for identity, numbers in found.items()}


def parse_user(text: str) -> str:
    """Who has a volume, for people. Raises InvalidRequest."""
    if len(text) > _LONGEST_USER or not text.isprintable():
        raise InvalidRequest(
            f"{text[:40]!r} does not say who has a volume: up to {_LONGEST_USER} printable characters"
        )
    return text


def _location(holders: Iterable[pb.Holder], bucket: Iterable[int]) -> Location:
    return Location(
        holders=tuple((member_from_wire(holder.member), _numbers(holder.numbers)) for holder in holders),
        bucket=_numbers(bucket),
    )


def _holders_to_wire(location: Location) -> list[pb.Holder]:
    return [pb.Holder(member=member_to_wire(member), numbers=numbers) for member, numbers in location.holders]


def holdings_to_wire(holdings: Holdings) -> list[pb.Holding]:
    """Numbers by volume."""
    return [pb.Holding(identity=str(identity), numbers=numbers) for identity, numbers in holdings.items()]


def holdings_from_wire(messages: Iterable[pb.Holding]) -> Holdings:
    """Raises InvalidRequest."""
    return {parse_identity(message.identity): _numbers(message.numbers) for message in messages}


def _numbers(numbers: Iterable[int]) -> tuple[int, ...]:
    ascending = tuple(sorted(set(numbers)))
    if ascending and not 1 <= ascending[0] <= ascending[-1] < 1 << 63:
        raise InvalidRequest(f"snapshot numbers begin at 1 and are below 2^63: {ascending[0]} to {ascending[-1]}")
    return ascending


def parse_name(text: str, what: str) -> str:
    """Raises InvalidRequest."""
    if not is_name(text):
        raise InvalidRequest(f"{text!r} is no valid name of a {what}")
    return text


def parse_address(text: str) -> str:
    """Raises InvalidRequest."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16) or not text.isprintable():
        raise InvalidRequest(f"{text!r} is no address: expected HOST:PORT")
    return text


def parse_domain(zone: str, pool: str, host: str) -> Domain:
    """Raises InvalidRequest."""
    for label in (zone, pool, host):
        if len(label) > _LONGEST_LABEL or (label and not label.isprintable()):
            raise InvalidRequest(f"{label[:40]!r} is no valid name of a zone, pool or host")
    return Domain(zone, pool, host)
