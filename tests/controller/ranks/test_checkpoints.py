"""What the ranks server shows of jobs in Kubernetes: objects for their checkpoints, events on themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from kubernetes.client import ApiClient

from controller.driver.sameness import differences
from controller.local.kube import ApiServer
from controller.ranks.addresses import JobAddressMaps
from controller.ranks.checkpoints import COLLECTION, MOST_OF_A_JOB, Checkpoints, objects_of
from controller.ranks.events import COMPONENT
from controller.writing import Gone, Writer
from fuse_tier.checkpoints import Job
from fuse_tier.errors import TierRefused, TierUnavailable
from fuse_tier.standing import Standing
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import CoordinatorStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.standing import standing_to_wire
from tests.controller.ranks.test_server import make_job, make_pod, ranks_server
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

_MANIFESTS = Path(__file__).parents[3] / "deploy/multitier/controller/checkpoints.yaml"
CRD: dict[str, Any] = next(yaml.safe_load_all(_MANIFESTS.read_text()))
JOB = Job("ml", "llama")


def standing(step: int | None, *tiers: str, run: str = "llama", ranks: int = 2, is_bad: bool = False) -> Standing:
    return Standing(JOB, run, ranks, step, 1_760_000_000_500_000_000, 3 << 29, tiers, is_bad)


def test_an_object_says_what_is_known_of_a_checkpoint() -> None:
    (found,) = objects_of([standing(300, "ram", "bucket")]).values()
    assert found["metadata"] == {"name": "llama-300", "namespace": "ml"}
    assert found["status"] == {
        "job": "llama",
        "run": "llama",
        "step": 300,
        "ranks": 2,
        "tiers": "ram,bucket",
        "size": "1.5 GiB",
        "bytes": 3 << 29,
        "restorable": True,
        "savedAt": "2025-10-09T08:53:20Z",
    }


def test_what_is_bad_or_away_cannot_be_restored_and_a_tree_without_steps_has_one_object() -> None:
    bad, away, newest = objects_of([standing(1, "ram", is_bad=True), standing(2), standing(None, "ram")]).values()
    assert not bad["status"]["restorable"]
    assert not away["status"]["restorable"]
    assert newest["metadata"]["name"] == "llama-newest"
    assert "step" not in newest["status"]


def test_runs_and_shapes_of_one_job_do_not_get_in_each_others_way_and_names_are_what_kubernetes_takes() -> None:
    several = [
        standing(5),
        standing(5, ranks=4),
        standing(5, run="Exp_7"),
        Standing(Job("ml", "X" * 253), "r" * 253, 1, 10**17, 0, 0, ()),
        standing(5, run="v1._x"),
    ]
    names = [name for _, name in objects_of(several)]
    assert len(set(names)) == 5
    assert (names[2], names[4]) == ("llama-exp-7-5", "llama-v1-x-5")
    assert all(len(name) <= 253 and name.replace("-", "").isalnum() and name == name.lower() for name in names)


def test_of_a_job_the_newest_are_shown_and_one_at_least_that_it_could_go_on_from() -> None:
    def made(step: int, *tiers: str, job: Job = JOB) -> Standing:
        return Standing(job, "llama", 2, step, step * 10**9, 1, tiers)

    many = [made(step, "bucket") for step in range(2 * MOST_OF_A_JOB)]
    other = made(1, "ram", job=Job("ml", "bert"))
    steps = sorted(one["status"]["step"] for one in objects_of([*many, other]).values())
    assert steps == [1, *range(MOST_OF_A_JOB, 2 * MOST_OF_A_JOB)]
    lost = [replace(one, tiers=()) for one in many[10:]]
    steps = sorted(one["status"]["step"] for one in objects_of([*many[:10], *lost]).values())
    assert steps == [9, *range(MOST_OF_A_JOB, 2 * MOST_OF_A_JOB)]


async def install(api: ApiClient) -> Writer:
    """As ``kubectl apply -k`` does; returns when the kind is served."""
    writer = Writer(api, 1000)
    await writer.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", CRD)

    async def is_served() -> bool:
        try:
            await writer.read(COLLECTION)
        except (Gone, TierUnavailable):
            return False
        return True

    await until(is_served)
    await writer.create("/api/v1/namespaces", {"metadata": {"name": "ml"}})
    return writer


async def shown(api: ApiClient) -> dict[str, Any]:
    """What is there, by name."""
    items = (await Writer(api, 1000).read(COLLECTION))["items"]
    return {one["metadata"]["name"]: one["status"] for one in items}


@pytest.mark.kube
async def test_there_is_an_object_for_as_long_as_there_is_the_checkpoint_and_nothing_is_asked_in_between(
    api_server: ApiServer,
) -> None:
    with api_server.client as admin, api_server.client as api:
        admin_writer = await install(admin)
        calls: list[str] = []
        writer = Writer(api, 1000, lambda method, status: calls.append(f"{method} {status}"), COMPONENT)

        async def until_shown(**tiers: str) -> None:
            async def so() -> bool:
                return {name: one["tiers"] for name, one in (await shown(admin)).items()} == {
                    name.replace("_", "-"): told for name, told in tiers.items()
                }

            await until(so)

        async with trio.open_nursery() as nursery:
            checkpoints = Checkpoints(api, writer, missing_seconds=0.5, again_seconds=0.1)
            nursery.start_soon(checkpoints.run)
            checkpoints.complete([standing(100, "ram"), standing(200, "ram")])
            await until_shown(llama_100="ram", llama_200="ram")

            async def both_are_answered() -> bool:
                return len(calls) == 2

            await until(both_are_answered)
            assert calls == ["POST 201", "POST 201"]
            for _ in range(3):
                checkpoints.complete([standing(100, "ram"), standing(200, "ram")])
                await trio.testing.wait_all_tasks_blocked()
            assert len(calls) == 2
            # What somebody changes is put right, what somebody removes is made again.
            path = "/apis/checkpointing.gke.io/v1/namespaces/ml/checkpoints/llama-100"
            await admin_writer.merge(path, {"status": {"tiers": "bucket"}})
            await admin_writer.delete("/apis/checkpointing.gke.io/v1/namespaces/ml/checkpoints/llama-200")
            await until_shown(llama_100="ram", llama_200="ram")
            checkpoints.complete([standing(200, "ram", "peer")])
            await until_shown(llama_200="ram,peer")
            # Of a namespace that there is not: it is tried again, though nothing has changed, until there is.
            elsewhere = Standing(Job("nowhere", "x"), "x", 2, 1, 0, 0, ("ram",))
            checkpoints.complete([standing(200, "ram"), elsewhere])
            await until_shown(llama_200="ram")

            async def is_refused() -> bool:
                return calls.count("POST 404") >= 2

            await until(is_refused)
            checkpoints.complete([standing(200, "bucket"), elsewhere])
            await until_shown(llama_200="bucket")
            await admin_writer.create("/api/v1/namespaces", {"metadata": {"name": "nowhere"}})
            await until_shown(llama_200="bucket", x_1="ram")
            checkpoints.complete([standing(200, "bucket")])
            await until_shown(llama_200="bucket")
            nursery.cancel_scope.cancel()

        # A server that starts anew removes what is not there any more, once it knows.
        async with trio.open_nursery() as nursery:
            checkpoints = Checkpoints(api, writer, missing_seconds=0)
            nursery.start_soon(checkpoints.run)
            await trio.testing.wait_all_tasks_blocked()
            assert set(await shown(admin)) == {"llama-200"}
            checkpoints.complete([standing(300, "bucket")])
            await until_shown(llama_300="bucket")
            nursery.cancel_scope.cancel()


@pytest.mark.kube
async def test_of_a_job_with_very_many_checkpoints_the_older_objects_go_and_an_event_concerns_its_object_alone(
    api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.ranks.checkpoints.MOST_OF_A_JOB", 20)
    compared = 0

    def counted(wanted: Any, found: Any) -> list[str]:
        nonlocal compared
        compared += 1
        return differences(wanted, found)

    monkeypatch.setattr("controller.ranks.kept.differences", counted)
    with api_server.client as admin, api_server.client as api:
        admin_writer = await install(admin)
        async with trio.open_nursery() as nursery:
            checkpoints = Checkpoints(api, Writer(api, 1000, manager=COMPONENT), missing_seconds=0)
            nursery.start_soon(checkpoints.run)

            def complete(*steps: int) -> None:
                checkpoints.complete([replace(standing(step, "bucket"), created_ns=step * 10**9) for step in steps])

            async def until_there_are(*steps: int, tiers: str = "bucket") -> None:
                async def so() -> bool:
                    there = await shown(admin)
                    return {one["step"] for one in there.values() if one["tiers"] == tiers} == set(steps)

                await until(so)

            complete(*range(100))
            await until_there_are(*range(80, 100))
            complete(*range(105))
            await until_there_are(*range(85, 105))
            for step in 90, 91:  # with the first, all that was written before has been told by the watch
                compared = 0
                path = f"/apis/checkpointing.gke.io/v1/namespaces/ml/checkpoints/llama-{step}"
                await admin_writer.merge(path, {"status": {"tiers": "ram"}})
                await until_there_are(*range(85, 105))
            # The change, what was written, and what the watch told of that and of the one before; not all twenty.
            assert compared <= 5
            nursery.cancel_scope.cancel()


@pytest.mark.kube
async def test_what_is_said_of_an_object_is_not_written_to_another_of_its_name(api_server: ApiServer) -> None:
    with api_server.client as admin:
        writer = Writer(admin, 1000)
        await writer.create("/api/v1/namespaces", {"metadata": {"name": "ml"}})
        place = "/api/v1/namespaces/ml/configmaps"
        ours = await writer.create(place, {"metadata": {"name": "llama"}, "data": {"ip": "10.0.0.1"}})
        told = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "llama", "uid": ours["metadata"]["uid"]},
            "data": {"ip": "10.0.0.2"},
        }
        assert (await writer.apply(f"{place}/llama", told))["data"] == {"ip": "10.0.0.2"}
        await writer.delete(f"{place}/llama")
        await writer.create(place, {"metadata": {"name": "llama"}, "data": {"ip": "somebody else's"}})
        with pytest.raises(TierRefused, match="uid: Invalid value"):
            await writer.apply(f"{place}/llama", told)
        assert (await writer.read(f"{place}/llama"))["data"] == {"ip": "somebody else's"}


@pytest.mark.kube
async def test_a_jobs_coordinator_has_a_config_map_and_one_that_is_somebody_elses_is_left_alone(
    api_server: ApiServer, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("addresses.name_reserved")
    with api_server.client as admin, api_server.client as api:
        writer = Writer(admin, 1000)
        await writer.create("/api/v1/namespaces", {"metadata": {"name": "ml"}})
        place = "/api/v1/namespaces/ml/configmaps"
        await writer.create(place, {"metadata": {"name": "images"}, "data": {"ip": "not an address"}})

        async def until_maps_are(**told: str) -> None:
            async def so() -> bool:
                items = (await writer.read(place))["items"]
                found = {one["metadata"]["name"]: one["data"].get("ip") for one in items}
                found.pop("kube-root-ca.crt", None)
                return found == {"images": "not an address", **told}

            await until(so)

        async with trio.open_nursery() as nursery:
            maps = JobAddressMaps(api, Writer(api, 1000, manager=COMPONENT), "ml", missing_seconds=0)
            nursery.start_soon(maps.run)
            reserved = ("checkpoint-image-config", "custom-checkpoint-image-config", "multitier-driver-1")
            maps.addresses({"llama": "10.0.0.1", "images": "10.0.0.2", **dict.fromkeys(reserved, "10.0.0.9")})
            await until_maps_are(llama="10.0.0.1")
            assert [line.event for line in expected_logs.heard] == ["addresses.name_reserved"] * 3
            maps.addresses({"llama": "10.0.0.3", "images": "10.0.0.2"})
            await until_maps_are(llama="10.0.0.3")
            maps.addresses({})
            await until_maps_are()
            nursery.cancel_scope.cancel()


@pytest.mark.kube
async def test_the_server_shows_what_nodes_report_and_tells_a_job_of_its_backups(api_server: ApiServer) -> None:
    with api_server.client as admin:
        await install(admin)
        await make_job(api_server, 0, 1)
        await make_pod(api_server, 0, 0, "")

        async def report(client: Client) -> None:
            sequence = 0
            async with Client(client._address, CoordinatorStub, None) as coordinator:
                while True:
                    sequence += 1
                    request = pb.ReportRequest(
                        cluster="default",
                        node="a",
                        instance="1",
                        sequence=sequence,
                        addresses=pb.Addresses(control="127.0.0.1:1", bulk="127.0.0.1:2"),
                        standings=[standing_to_wire(standing(100, "bucket"))],
                        failing=[pb.Failing(identity="ml/llama/0", reason="no right")],
                    )
                    await coordinator.call("Report", request, 5)
                    await trio.sleep(0.2)

        async with ranks_server(api_server) as client, trio.open_nursery() as nursery:
            nursery.start_soon(report, client)

            async def is_shown() -> bool:
                return {name: one["tiers"] for name, one in (await shown(admin)).items()} == {"llama-100": "bucket"}

            await until(is_shown)
            nursery.cancel_scope.cancel()
        (event,) = (await Writer(admin, 1000).read("/api/v1/namespaces/ml/events"))["items"]
        told = {key: event["involvedObject"].get(key) for key in ("kind", "namespace", "name")}
        assert told == {"kind": "JobSet", "namespace": "ml", "name": "llama"}, json.dumps(event)
        assert (event["type"], event["reason"]) == ("Warning", "BackupFailed")
        assert event["message"].endswith("it is tried again: no right")
