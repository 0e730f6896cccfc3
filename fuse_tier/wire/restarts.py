"""How the values of ``restarts.py`` travel in ``control.proto``; parsing is strict, as in ``members.py`` here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from fuse_tier import epochs
from fuse_tier.checkpoints import Job, Saved, is_checkpoint_name
from fuse_tier.errors import ConfigError, InvalidRequest, TierRefused
from fuse_tier.identity import Identity, SnapshotId, is_name
from fuse_tier.manifest import Lineage
from fuse_tier.restarts import MOST_BRANCH_POINTS, Backup, BranchPoint, Mark, Question, Resumption, Verdict
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.members import MINOR

_STEPS = 10**18  # the highest is below
_LONGEST_REASON = 1000
_LONGEST_WISH = 100
_MILLISECOND = 10**6  # nanoseconds
_READS_ALL = 8  # the minor version that knows all that manifests have


def saves_to_wire(saved: Mapping[Identity, Iterable[Saved]]) -> list[pb.Saves]:
    """What holdings are part of."""
    messages: dict[tuple[Identity, Lineage], pb.Saves] = {}
    for identity, several in saved.items():
        for one in several:
            lineage = one.lineage
            message = messages.setdefault(
                (identity, lineage),
                pb.Saves(
                    identity=str(identity),
                    run=lineage.run,
                    world_size=lineage.world_size,
                    topology=lineage.topology,
                    groups=lineage.groups,
                    part=lineage.part,
                ),
            )
            message.numbers.append(one.id.number)
            message.steps.append(0 if one.step is None else one.step + 1)
            message.created_ms.append(one.created_ns // _MILLISECOND)
            message.bytes.append(one.size)
            if one.older:
                message.older.append(pb.OlderSteps(number=one.id.number, steps=one.older))
    return list(messages.values())


def saves_from_wire(messages: Iterable[pb.Saves]) -> dict[Identity, tuple[Saved, ...]]:
    """Raises InvalidRequest."""
    found: dict[Identity, tuple[Saved, ...]] = {}
    for message in messages:
        if len(message.numbers) != len(message.steps):
            raise InvalidRequest(
                f"{message.identity}: {len(message.numbers)} snapshots and {len(message.steps)} steps"
            )
        lineage = parse_lineage(message)
        unsaid = [0] * len(message.numbers)
        times, sizes = message.created_ms or unsaid, message.bytes or unsaid
        if not len(times) == len(sizes) == len(message.numbers):
            raise InvalidRequest(f"{message.identity}: not each of its snapshots has time and size")
        older = {one.number: _older(one) for one in message.older}
        try:
            identity = Identity.parse(message.identity)
            saved = [
                Saved(
                    SnapshotId(identity, number),
                    lineage,
                    parse_step(step - 1) if step else None,
                    parse_time(created_ms * _MILLISECOND),
                    size,
                    _below(step - 1, older.get(number, ())),
                )
                for number, step, created_ms, size in zip(message.numbers, message.steps, times, sizes, strict=True)
            ]
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
        found[identity] = (*found.get(identity, ()), *saved)
    return found


def _older(message: pb.OlderSteps) -> tuple[int, ...]:
    steps = tuple(map(parse_step, message.steps))
    if any(one >= following for one, following in pairwise(steps)):
        raise InvalidRequest(f"the older steps of snapshot {message.number} are not in ascending order")
    return steps


def _below(newest: int, older: tuple[int, ...]) -> tuple[int, ...]:
    if older and older[-1] >= newest:
        raise InvalidRequest(f"step {older[-1]} is not older than step {newest} of the same snapshot")
    return older


def resumption_to_wire(identity: Identity, one: Resumption) -> pb.Resumption:
    """From what a volume went on."""
    return pb.Resumption(
        identity=str(identity),
        run=one.run,
        restart=one.restart,
        step=one.step,
        epoch=one.epoch,
        wish=one.wish,
        over=one.is_over,
        before=map(_branch_point_to_wire, one.before),
    )


def resumption_from_wire(message: pb.Resumption) -> tuple[Identity, Resumption]:
    """Raises InvalidRequest."""
    step = parse_step(message.step) if message.HasField("step") else None
    if not is_name(message.run):
        raise InvalidRequest(f"{message.run!r} is no run")
    if message.epoch > epochs.HIGHEST or message.restart > epochs.HIGHEST:
        raise InvalidRequest(f"restart {message.restart} in epoch {message.epoch} is out of range")
    wish = message.wish[:_LONGEST_WISH]
    resumption = Resumption(message.run, message.restart, step, message.epoch, wish, is_over=message.over)
    return _identity(message.identity), resumption.after(_branch_points(message.before))


def _branch_point_to_wire(one: BranchPoint) -> pb.BranchPoint:
    return pb.BranchPoint(epoch=one.epoch, step=one.step)


def _branch_points(messages: Sequence[pb.BranchPoint]) -> tuple[BranchPoint, ...]:
    if len(messages) > MOST_BRANCH_POINTS + 1:
        raise InvalidRequest(f"{len(messages)} branch points are too many, at most {MOST_BRANCH_POINTS + 1}")
    if any(one.epoch > epochs.HIGHEST for one in messages):
        raise InvalidRequest("the epoch of a branch point is out of range")
    return tuple(BranchPoint(one.epoch, parse_step(one.step) if one.HasField("step") else None) for one in messages)


def mark_to_wire(mark: Mark) -> pb.Mark:
    """A step that is not to be restored."""
    return pb.Mark(job=str(mark.job), run=mark.run, step=mark.step, epoch=mark.epoch)


def mark_from_wire(message: pb.Mark) -> Mark:
    """Raises InvalidRequest."""
    if not is_name(message.run) or message.epoch > epochs.HIGHEST:
        raise InvalidRequest(f"run {message.run!r}, epoch {message.epoch}: no mark has these")
    return Mark(parse_job(message.job), message.run, parse_step(message.step), message.epoch)


def parse_job(text: str) -> Job:
    """Reads ``NAMESPACE/WORKLOAD``. Raises InvalidRequest."""
    namespace, slash, workload = text.partition("/")
    if not slash or not is_name(namespace) or not is_name(workload):
        raise InvalidRequest(f"job {text[:80]!r} must have two parts: NAMESPACE/WORKLOAD")
    return Job(namespace, workload)


def question_to_wire(question: Question) -> pb.RestartRequest:
    """What a node asks; it adds who it is."""
    lineage = question.lineage
    return pb.RestartRequest(
        identity=str(question.identity),
        run=lineage.run,
        world_size=lineage.world_size,
        topology=lineage.topology,
        backups=map(backup_to_wire, question.backups),
        bucket_silent=question.bucket_silent[:_LONGEST_REASON],
        lacking=question.lacking,
        forced=question.forced,
        groups=lineage.groups,
        part=lineage.part,
        fills=question.fills,
        lacking_partners=map(str, question.lacking_partners),
        minor=MINOR,
    )


def question_from_wire(message: pb.RestartRequest) -> Question:
    """Raises InvalidRequest; TierRefused to a node that takes for damaged what it may only be too old to read."""
    identity = _identity(message.identity)
    if message.world_size < 1:
        raise InvalidRequest(f"{identity}: the size of its job is not said")
    if any(not 1 <= number < 1 << 63 for number in message.lacking):
        raise InvalidRequest(f"{identity}: it lacks what can be no snapshot")
    if message.minor < _READS_ALL and (message.lacking or message.lacking_partners):
        raise TierRefused(
            f"{identity}: node {message.node} is of an earlier version, which cannot read what later ones save: "
            "update it, or mount on a node that is updated"
        )
    return Question(
        identity,
        parse_lineage(message),
        tuple(map(backup_from_wire, message.backups)),
        message.bucket_silent[:_LONGEST_REASON],
        tuple(message.lacking),
        parse_step(message.forced) if message.HasField("forced") else None,
        message.fills,
        tuple(map(_snapshot, message.lacking_partners)),
    )


def verdict_to_wire(verdict: Verdict) -> pb.RestartReply:
    """The answer."""
    return pb.RestartReply(
        restart=verdict.restart,
        step=verdict.step,
        number=verdict.number,
        others=verdict.others,
        wish=verdict.wish,
        partner=verdict.partner,
        branch_points=map(_branch_point_to_wire, verdict.branch_points),
    )


def verdict_from_wire(message: pb.RestartReply) -> Verdict:
    """Raises InvalidRequest."""
    step = parse_step(message.step) if message.HasField("step") else None
    if (message.number and step is None) or message.number >= 1 << 63 or message.restart > epochs.HIGHEST:
        raise InvalidRequest(f"restart {message.restart}: step {step} is not snapshot {message.number}")
    partner = _partner(message.partner)
    return Verdict(
        message.restart,
        step,
        message.number,
        tuple(message.others),
        message.wish[:_LONGEST_WISH],
        partner,
        _branch_points(message.branch_points),
    )


def backup_to_wire(backup: Backup) -> pb.Backup:
    """A complete checkpoint in the bucket."""
    return pb.Backup(
        step=backup.step, number=backup.number, epoch=backup.epoch, name=backup.name, partner=backup.partner
    )


def backup_from_wire(message: pb.Backup) -> Backup:
    """Raises InvalidRequest."""
    if message.number >= 1 << 63 or message.epoch > epochs.HIGHEST:
        raise InvalidRequest(f"{message.number} is the number of no snapshot of epoch {message.epoch}")
    name = message.name if is_checkpoint_name(message.name) else ""
    return Backup(parse_step(message.step), message.number, message.epoch, name, _partner(message.partner))


def parse_time(nanoseconds: int) -> int:
    """Since 1970. Raises InvalidRequest."""
    if not 0 <= nanoseconds < 1 << 63:
        raise InvalidRequest(f"{nanoseconds} ns since 1970 is no time")
    return nanoseconds


def _identity(text: str) -> Identity:
    try:
        return Identity.parse(text)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None


def _partner(replica: str) -> str:
    if replica and not is_name(replica):
        raise InvalidRequest(f"{replica[:80]!r} is no replica")
    return replica


def _snapshot(text: str) -> SnapshotId:
    try:
        return SnapshotId.parse(text)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None


def parse_lineage(message: pb.Saves | pb.RestartRequest | pb.JobInBucketRequest) -> Lineage:
    """Raises InvalidRequest."""
    try:
        return Lineage(
            message.run,
            world_size=message.world_size,
            topology=message.topology,
            groups=message.groups,
            part=message.part,
        )
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None


def parse_step(step: int) -> int:
    """Raises InvalidRequest."""
    if step >= _STEPS:
        raise InvalidRequest(f"{step} is no step: they are below {_STEPS}")
    return step
