"""The manifests of ``examples/``: a real API server takes them as they are, and no field of them is unknown to it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from controller.local.kube import running_api_server
from csi.services import DRIVER_NAME
from tests.harness.needs import JOBSET_CRD
from tests.harness.shell import Shell

EXAMPLES = Path(__file__).parents[2] / "examples"
MANIFESTS = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.kube
@pytest.mark.jobset
@pytest.mark.network
async def test_an_api_server_takes_every_example_and_would_not_take_a_field_that_it_does_not_know(
    tmp_path: Path,
) -> None:
    async with running_api_server(tmp_path / "kube") as server:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(server.kubeconfig))
        shell = Shell(EXAMPLES.parent, kubeconfig)
        await shell.run(f"kubectl create -f crd/checkpointconfiguration.yaml -f {JOBSET_CRD}")
        await shell.run("kubectl wait --for=condition=Established crd --all --timeout=60s")
        for manifest in MANIFESTS:
            said = await shell.run(f"kubectl create --dry-run=server --validate=strict -f {manifest}")
            documents = list(yaml.safe_load_all(manifest.read_text()))
            assert said.count("created (server dry run)") == len(documents), said
            mistaken = tmp_path / "mistaken.yaml"
            documents[-1]["spec"]["misspelt"] = 1
            mistaken.write_text(yaml.safe_dump_all(documents))
            refusal = await shell.refused(f"kubectl create --dry-run=server --validate=strict -f {mistaken}")
            assert 'unknown field "spec.misspelt"' in refusal


def test_there_is_an_example_of_each_kind_of_job() -> None:
    kinds = {document["kind"] for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())}
    assert {"CheckpointConfiguration", "JobSet", "StatefulSet", "Job"} <= kinds


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_programs_in_examples_are_python_and_volumes_are_ours(manifest: Path) -> None:
    for document in yaml.safe_load_all(manifest.read_text()):
        for name, program in document.get("data", {}).items():
            ast.parse(program, name)
    if manifest.name != "checkpointconfiguration.yaml":
        assert f"driver: {DRIVER_NAME}" in manifest.read_text()


def test_the_ranks_of_maxtexts_example_are_those_that_its_flags_name() -> None:
    (jobset,) = yaml.safe_load_all((EXAMPLES / "maxtext-jobset.yaml").read_text())
    (replicated,) = jobset["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    flags = dict(argument.split("=", 1) for argument in container["args"])
    assert int(flags["num_slices"]) == replicated["replicas"]
    assert flags["local_checkpoint_directory"] == container["volumeMounts"][0]["mountPath"]
