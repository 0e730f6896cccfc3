"""The manual works, with images that are built and pushed, and whose programs run out of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.manual import besides, follow_the_manual, running_site
from tests.harness.images import Built, in_container
from tests.harness.logs import ExpectedLogs
from tests.harness.own_node import Container

pytestmark = [pytest.mark.images, pytest.mark.kube, pytest.mark.root, pytest.mark.network, pytest.mark.timeout(600)]


async def test_the_manual_works_command_by_command_with_images_that_it_builds(
    built: Built, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    # The last is buildah's: it kills the program when it is told to end itself.
    expected_logs.allow("watch.refused", "election.failed", r"subprocess exited .*|Error: exit status 1")
    expected_logs.watch(tmp_path / "own")
    with ExitStack() as stack:
        containers: dict[str, str] = {}

        def from_image(container: Container) -> list[str]:
            if container.image not in containers:
                containers[container.image] = stack.enter_context(built.container(container.image))
            # /var/run is a link, which buildah does not follow.
            places = {mounted.replace("/var/run/", "/run/"): one for mounted, one in container.volumes.items()}
            options = [f"--volume={directory}:{mounted}" for mounted, directory in places.items()]
            options += [f"--env={name}={value}" for name, value in container.environment.items()]
            command = [*container.command, *besides(container)]
            return in_container(containers[container.image], command, *options)

        async with running_site(tmp_path, from_image) as site:
            site.shell.variables.update(built.tool)
            await follow_the_manual(site, built.repository)
            assert sorted(containers) == [
                f"{built.repository}/fuse-tier-{name}:v1" for name in ("controller", "ranks")
            ]
