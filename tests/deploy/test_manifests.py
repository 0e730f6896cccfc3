"""The manifests of ``deploy/``: put together and applied by a real kubectl, used with the rights that they grant."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from kubernetes.client import ApiClient

from controller.election import Times
from controller.local.kube import ApiServer, running_api_server
from controller.ranks.addresses import JobAddressMaps
from controller.ranks.book import RankBook
from controller.ranks.checkpoints import Checkpoints
from controller.ranks.events import COMPONENT, JobEvents
from controller.ranks.followers import followed
from controller.ranks.objects import Name
from controller.ranks.server import Serving, serve_ranks
from controller.ranks.sign import LABEL, LEADS
from controller.reconciling.issuing import RANKS
from controller.reconciling.world import CONFIGURATIONS
from controller.writing import Writer
from fuse_tier.checkpoints import Job
from fuse_tier.config import CoordinatorConfig
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.standing import Standing
from tests.controller.cluster import NAMESPACE, Cluster, path_of, running_controller
from tests.controller.configurations import SETTINGS
from tests.harness.checkouts import ROOT, give_recorder, make_checkout
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

KUBECTL = str(Path(sys.executable).parent / "kubectl")
TARGETS = ("controller", "ranks", "csi", "fuse", "replication-worker")
JOBS = f"/apis/batch/v1/namespaces/{SETTINGS.namespace}/jobs"
_SPEC = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
JOB = {
    "metadata": {"name": "llama"},
    "spec": {"completionMode": "Indexed", "completions": 1, "parallelism": 1, "template": {"spec": _SPEC}},
}
POD = {
    "metadata": {
        "name": "llama-0",
        "labels": {"batch.kubernetes.io/job-completion-index": "0"},
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "llama", "uid": "1"}],
    },
    "spec": {**_SPEC, "volumes": [{"name": "v", "csi": {"driver": SETTINGS.driver_name}}]},
}
Right = tuple[str, str, str, str]  # namespace (empty: everywhere), group, resource, verb

JOBSETS: dict[str, Any] = {  # as the API server needs to know them to list them
    "metadata": {"name": "jobsets.jobset.x-k8s.io"},
    "spec": {
        "group": "jobset.x-k8s.io",
        "names": {"kind": "JobSet", "plural": "jobsets"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1alpha2",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    made = make_checkout(tmp_path / "checkout")
    give_recorder(made)
    return made


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # As from a shell: a make below another one, which may run these tests, talks otherwise.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    words = ["make", f"CONTAINER_TOOL={checkout}/tool", *arguments]
    return subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def kubectl(*arguments: str, cwd: Path) -> str:
    found = subprocess.run([KUBECTL, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert found.returncode == 0, (arguments, found.stdout, found.stderr)
    return found.stdout


def refusal(checkout: Path, kubeconfig: Path, *arguments: str) -> str:
    """What kubectl says that refuses the directory."""
    command = [KUBECTL, f"--kubeconfig={kubeconfig}", *arguments, "deploy/multitier/controller"]
    found = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    return found.stderr


def built(checkout: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(kubectl("kustomize", "deploy/multitier/controller", cwd=checkout)))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "make multitier-images: REPO_PATH is missing: give the registry that has the images, REPO_PATH="),
        (["REPO_PATH=a|b"], "make multitier-images: REPO_PATH 'a|b' is no image path"),
        (["REPO_PATH=a/b", "MULTITIER_TAG=no tag"], "make multitier-images: MULTITIER_TAG 'no tag' is no tag"),
        (
            ["REPO_PATH=a/b", "REPLICATION_WORKER_DEBUG_BACKUP=yes"],
            "make multitier-images: REPLICATION_WORKER_DEBUG_BACKUP 'yes' is neither true nor false",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line_and_makes_nothing(checkout: Path, arguments: list[str], line: str) -> None:
    found = make(checkout, "multitier-images", *arguments)
    assert found.returncode == 2
    assert found.stderr.startswith(line)
    assert found.stderr.splitlines()[1:] == [
        one for one in found.stderr.splitlines()[1:] if one.startswith("make: ***")
    ]
    assert not list((checkout / "deploy/multitier/controller").glob("*image*.yaml"))
    assert not (checkout / "tool.calls").exists()


def test_all_images_are_built_and_then_pushed_and_only_then_named(checkout: Path) -> None:
    made = make(
        checkout,
        "multitier-images",
        "REPO_PATH=a/b",
        "MULTITIER_TAG=v7",
        "BASE_IMAGE=mine:1",
        "BUILD_OPTIONS=--layers --pull",
        "PUSH_OPTIONS=--tls-verify=false",
    )
    assert made.returncode == 0, made.stderr
    calls = (checkout / "tool.calls").read_text().splitlines()
    names = [f"a/b/fuse-tier-{target}:v7" for target in TARGETS]
    assert [one.split()[0] for one in calls] == ["build"] * 5 + ["push"] * 5
    for name, target, call in zip(names, TARGETS, calls[:5], strict=True):
        assert call.startswith("build --layers --pull --build-arg BASE_IMAGE=mine:1 --file deploy/images/Dockerfile")
        assert f"--target {target} --build-arg VERSION=" in call
        assert call.endswith(f" --tag {name} .")
    assert calls[5:] == [f"push --tls-verify=false {name}" for name in names]


@pytest.mark.parametrize("said", ["true", "false"])
def test_the_controller_is_told_whether_odd_steps_are_backed_up(checkout: Path, said: str) -> None:
    arguments = [] if said == "false" else [f"REPLICATION_WORKER_DEBUG_BACKUP={said}"]
    assert make(checkout, "multitier-images", "REPO_PATH=a/b", *arguments).returncode == 0
    (controller,) = (
        one
        for one in built(checkout)
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "high-scale-checkpointing-controller"
    )
    (container,) = controller["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1] == f"--replication-worker-debug-backup={said}"


@pytest.mark.parametrize("failing", ["build", "push"])
def test_nothing_names_images_that_could_not_be_built_or_pushed(checkout: Path, failing: str) -> None:
    (checkout / "tool").write_text(f"#!/bin/sh\n[ $1 != {failing} ]\n")
    assert make(checkout, "multitier-images", "REPO_PATH=a/b").returncode == 2
    assert not list((checkout / "deploy/multitier/controller").glob("*image*.yaml"))


def test_a_container_tool_that_is_not_there_is_told_in_one_line(checkout: Path) -> None:
    found = make(checkout, "multitier-images", "REPO_PATH=a/b", "CONTAINER_TOOL=no-such-tool")
    assert found.returncode == 2
    assert found.stderr.startswith("make multitier-images: CONTAINER_TOOL 'no-such-tool' is not here: install it")


def test_kustomize_says_so_when_the_files_were_not_made_before_or_have_been_removed(checkout: Path) -> None:
    def refusal() -> str:
        command = [KUBECTL, "kustomize", "deploy/multitier/controller"]
        found = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        assert found.returncode != 0
        return found.stderr

    assert "run-make-multitier-images-first.yaml: no such file" in refusal()
    assert make(checkout, "multitier-images", "REPO_PATH=a/b").returncode == 0
    assert built(checkout)
    assert make(checkout, "clean-multitier-controller").returncode == 0
    assert "run-make-multitier-images-first.yaml: no such file" in refusal()


def test_the_manifests_alone_can_be_made_for_images_that_are_built_elsewhere(checkout: Path) -> None:
    assert make(checkout, "multitier-files", "REPO_PATH=a/b").returncode == 0
    assert len(list((checkout / "deploy/multitier/controller").glob("*-image*.yaml"))) == 3
    assert not (checkout / "tool.calls").exists()


def test_the_generated_files_name_the_images_and_are_removed_again(checkout: Path) -> None:
    directory = checkout / "deploy/multitier/controller"
    made = make(checkout, "multitier-images", "REPO_PATH=registry.example:5000/p/r", "MULTITIER_TAG=v7")
    assert made.returncode == 0, made.stderr
    objects = built(checkout)
    (images,) = [one["data"] for one in objects if one["metadata"]["name"] == "checkpoint-image-config"]
    assert images["csi-image"] == "registry.example:5000/p/r/fuse-tier-csi:v7"
    deployments = [one for one in objects if one["kind"] == "Deployment"]
    assert {one["spec"]["template"]["spec"]["containers"][0]["image"] for one in deployments} == {
        "registry.example:5000/p/r/fuse-tier-controller:v7",
        "registry.example:5000/p/r/fuse-tier-ranks:v7",
    }
    assert make(checkout, "clean-multitier-controller").returncode == 0
    assert {one.name for one in directory.glob("*image*.yaml")} == {"csi-container-images.yaml"}
    assert make(checkout, "clean-multitier").returncode == 0
    assert not list(directory.glob("*image*.yaml"))
    assert make(checkout, "multitier-images", "REPO_PATH=a/b").returncode == 0
    assert "a/b/fuse-tier-csi:0" in (directory / "csi-container-images.yaml").read_text(), "the version is the tag"


def test_programs_take_the_arguments_that_the_manifests_give_them(checkout: Path) -> None:
    from click.testing import CliRunner

    from controller.ranks.cli import ranks
    from controller.reconciling.cli import controller

    make(checkout, "multitier-images", "REPO_PATH=a/b")
    commands = {"fuse-tier-controller": controller, "fuse-tier-ranks": ranks}
    for one in built(checkout):
        if one["kind"] == "Deployment":
            (container,) = one["spec"]["template"]["spec"]["containers"]
            found = CliRunner().invoke(commands[container["command"][0]], container["args"])
            assert found.exit_code == 1, found.output
            assert "no API server is known" in str(found.exception) or "no such file" in str(found.exception)


def granted(objects: list[dict[str, Any]], account: str) -> set[Right]:
    """What the bindings to a service account allow."""
    rules = {(one["kind"], one["metadata"]["name"]): one["rules"] for one in objects if one["kind"].endswith("Role")}
    found: set[Right] = set()
    for one in objects:
        if one["kind"].endswith("RoleBinding") and account in [subject["name"] for subject in one["subjects"]]:
            for rule in rules[one["roleRef"]["kind"], one["roleRef"]["name"]]:
                found |= {
                    (one["metadata"].get("namespace", ""), group, resource, verb)
                    for group in rule["apiGroups"]
                    for resource in rule["resources"]
                    for verb in rule["verbs"]
                }
    return found


def used(method: str, path: str, query: Any, headers: Any) -> set[Right]:
    """The rights that a call needs. Events and checkpoints are made where any job may be: for everywhere."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace = ""
    if rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    resource = rest[0] if len(rest) < 3 else f"{rest[0]}/{rest[2]}"
    verbs = {"POST": ["create"], "PUT": ["update"], "DELETE": ["delete"], "PATCH": ["patch"]}.get(method)
    if verbs is None:
        verbs = ["get"] if len(rest) > 1 else ["watch"] if ("watch", "1") in query else ["list"]
    if "apply" in headers.get("Content-Type", ""):
        verbs = ["patch", "create"]
    return {("" if resource in ("events", "checkpoints") else namespace, group, resource, verb) for verb in verbs}


def spied(api: ApiClient, calls: set[Right]) -> ApiClient:
    ask = api.call_api

    def call(path: str, method: str, *rest: Any, **more: Any) -> Any:
        calls.update(used(method, path, more.get("query_params", ()), more.get("header_params", {})))
        return ask(path, method, *rest, **more)

    api.call_api = call
    return api


def client_of(server: ApiServer, account: str) -> ApiClient:
    """With an account's rights, and no others."""
    api = server.client
    api.set_default_header("Impersonate-User", f"system:serviceaccount:{SETTINGS.namespace}:{account}")
    return api


@pytest.mark.kube
async def test_what_is_applied_is_taken_and_both_programs_use_exactly_the_rights_that_they_get(
    checkout: Path, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("uptime.pod_deleted")
    make(checkout, "multitier-images", "REPO_PATH=a/b", "MULTITIER_TAG=v7")
    objects = built(checkout)
    async with running_api_server(tmp_path / "kube") as server:
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(server.kubeconfig))

        async def run(*arguments: str) -> str:
            return await trio.to_thread.run_sync(lambda: kubectl("--kubeconfig", str(path), *arguments, cwd=checkout))

        refused = await trio.to_thread.run_sync(partial(refusal, checkout, path, "apply", "-f"))
        assert 'name: "use-kubectl-apply-k-and-not-f"' in refused
        first = await run("apply", "-k", "deploy/multitier/controller")
        assert len(first.splitlines()) == len(objects)
        image = await run("get", "deployment", "-n", SETTINGS.namespace, "-o", "jsonpath={..image}")
        assert image.split() == ["a/b/fuse-tier-controller:v7", "a/b/fuse-tier-ranks:v7"], "-k mends it"
        again = await run("apply", "-k", "deploy/multitier/controller")
        changed = [line for line in again.splitlines() if not line.endswith(" unchanged")]
        # The API says of a budget's selector that patches replace it, and kubectl sends such a patch each time.
        assert all(line.startswith("poddisruptionbudget.policy/") for line in changed), changed
        await run("apply", "-f", str(ROOT / "crd/checkpointconfiguration.yaml"))
        await run("wait", "--for=condition=Established", "crd/checkpointconfigurations.checkpointing.gke.io")
        used_by_controller: set[Right] = set()
        used_by_ranks: set[Right] = set()
        account, ranks_account = "gke-checkpointing-multitier-controller", "gke-checkpointing-rank-server-sa"
        with (
            server.client as admin,
            spied(client_of(server, account), used_by_controller) as api,
            spied(client_of(server, ranks_account), used_by_ranks) as ranks_api,
        ):
            cluster = Cluster(server, admin)
            kept: dict[str, Any] = {
                "lease_namespace": SETTINGS.namespace, "times": Times(lease=2, renew_deadline=1.5, retry=0.1)
            }  # fmt: skip
            async with running_controller(api, **kept, uptime_backoff=3600.0, uptime_grace=0.1):
                await run("apply", "-f", str(ROOT / "examples/checkpointconfiguration.yaml"))
                daemonset = await cluster.daemonset()
                await cluster.until_found(f"{NAMESPACE}/secrets/{RANKS}", lambda _: True)
                await cluster.run_pods()
                await cluster.until_condition("Ready", "True", "AllNodesReady")
                assert (await run("get", "cpc")).splitlines()[1].split()[:4] == [
                    "default",
                    "my-checkpoints",
                    "3",
                    "3",
                ]
                await cluster.writer.create("/api/v1/nodes", {"metadata": {"name": "a"}})
                await cluster.run_pod("a")
                await cluster.until_event("DriverPodDeleted")
                assert "Ready" in await run("events", "--for=CheckpointConfiguration/default", "-n", "default")
                await run("delete", "checkpointconfigurations", "--all", "--wait=false")
                await cluster.until_found(path_of(daemonset), lambda one: "deletionTimestamp" in one["metadata"])
                await cluster.writer.merge(path_of(daemonset), {"metadata": {"finalizers": None}})
                await cluster.until_gone(f"{CONFIGURATIONS}/default")
            pods = f"{NAMESPACE}/pods"
            for name in ("ranks-1", "ranks-2"):  # the other one led before
                labels = {LABEL: LEADS} if name == "ranks-2" else {}
                metadata = {"name": name, "labels": {"app": "high-scale-checkpointing-ranks", **labels}}
                spec = {"containers": [{"name": "x", "image": "x"}]}
                await cluster.writer.create(pods, {"metadata": metadata, "spec": spec})
            await cluster.writer.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", JOBSETS)
            await run("wait", "--for=condition=Established", "crd/jobsets.jobset.x-k8s.io")
            config = CoordinatorConfig.model_validate({"listen": f"127.0.0.1:{free_ports(1)[0]}"})
            times = Times(lease=2, renew_deadline=1.5, retry=0.1)
            serving = Serving(SETTINGS.driver_name, config, SETTINGS.namespace, "ranks-1", times=times)
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_ranks, ranks_api, serving)
                led = (await cluster.writer.read(pods, f"{LABEL}={LEADS}"))["items"]
                assert [one["metadata"]["name"] for one in led] == ["ranks-1"]
                (service,) = [one for one in objects if one["kind"] == "Service"]
                assert service["spec"]["selector"].items() <= led[0]["metadata"]["labels"].items()

                async def follows_jobsets() -> bool:
                    return ("", "jobset.x-k8s.io", "jobsets", "watch") in used_by_ranks

                await until(follows_jobsets)
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery:
                book = RankBook()
                for collection in followed(ranks_api, SETTINGS.driver_name, book):
                    await nursery.start(collection.follow)
                await cluster.writer.create(JOBS, JOB)
                await cluster.writer.create(f"{NAMESPACE}/pods", POD)
                writer = Writer(ranks_api, 100, manager=COMPONENT)
                checkpoints, events = Checkpoints(ranks_api, writer, missing_seconds=0), JobEvents(writer, book)
                nursery.start_soon(checkpoints.run)
                nursery.start_soon(events.run)
                job = Job(SETTINGS.namespace, "llama")
                for tiers in ("ram",), ("ram", "bucket"):
                    checkpoints.complete([Standing(job, "llama", 1, 100, 1, 1 << 30, tiers)])

                    async def is_shown(told: str = f" {','.join(tiers)} ") -> bool:
                        return told in await run("get", "checkpoints", "-n", SETTINGS.namespace)

                    await until(is_shown)
                rows = (await run("get", "checkpoints", "-n", SETTINGS.namespace)).splitlines()
                assert rows[0].split() == ["NAME", "JOB", "STEP", "RANKS", "TIERS", "SIZE", "RESTORABLE", "AGE"]
                assert rows[1].split()[:8] == ["llama-100", "llama", "100", "1", "ram,bucket", "1", "GiB", "true"]
                checkpoints.complete([])

                async def is_gone() -> bool:
                    return not await run("get", "checkpoints", "-n", SETTINGS.namespace)

                await until(is_gone)
                assert book.origin_of(Name(SETTINGS.namespace, "llama")) is not None
                events.resumed(job, 100, 1, ("ram",))

                maps = JobAddressMaps(ranks_api, writer, SETTINGS.namespace, missing_seconds=0)
                nursery.start_soon(maps.run)
                for addresses in ({"llama": "10.0.0.1"}, {"llama": "10.0.0.2"}, {}):
                    maps.addresses(addresses)

                    async def is_so(address: str = addresses.get("llama", "")) -> bool:
                        told = await run("get", "configmap", "llama", "-n", SETTINGS.namespace, "--ignore-not-found",
                                         "-o", "jsonpath={.data.ip}")  # fmt: skip
                        return told == address

                    await until(is_so)

                async def has_all_rights() -> bool:
                    watches = sum(right[3] == "watch" for right in used_by_ranks)
                    return watches == 7 and ("", "", "events", "create") in used_by_ranks

                await until(has_all_rights)
                assert "on from step 100" in await run("events", "--for=Job/llama", "-n", SETTINGS.namespace)
                nursery.cancel_scope.cancel()
    assert granted(objects, account) - used_by_controller == set(), "nobody uses these"
    assert used_by_controller - granted(objects, account) == set(), "the programs lack these"
    assert granted(objects, ranks_account) == used_by_ranks
    assert granted(objects, SETTINGS.service_account) == set()
