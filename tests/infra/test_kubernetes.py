"""The manifests for Kubernetes, against the published schemas, and as Prefect's worker fills them in. No cluster."""

import asyncio
import ipaddress
import json
import re
import tomllib
from urllib.parse import urlsplit

import pytest
import yaml
from click.testing import CliRunner
from kubernetes_validate import ValidationError, validate

from infra import node
from spin_core.errors import SpinError
from tests.support.servers.stack import ROOT

FOLDER = ROOT / "infra" / "kubernetes"
VERSION = "1.33"
"""The oldest release in which all used features are stable."""


RUN = dict.fromkeys(("id", "flow_id"), "6b2d5f4e-7c38-4f0a-9d0f-3c8e5f1f7a11") | {"name": "demo-mine"}
"""A run, as its worker gets it."""


def documents(name: str):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def manifest_of(name: str, kind: str):
    (manifest,) = [document for document in documents(name) if document["kind"] == kind]
    return manifest


def template():
    return json.loads((FOLDER / "base-job-template.json").read_text())


def filled_in(auth: str = "", ui: str = "", **values):
    """The Job that Prefect's worker would create for a run. This needs no server."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    own = {PREFECT_API_AUTH_STRING: auth or None, PREFECT_UI_URL: ui or None}
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", **own}):
        made = asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(template(), values))
        made.prepare_for_flow_run(FlowRun.model_validate(RUN))
    return made


def container_of(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("name", ["worker.yaml", "run.yaml", "network-policy.yaml"])
def test_manifests_keep_to_the_published_schemas(name):
    for document in documents(name):
        validate(document, VERSION, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_rejected():
    job = manifest_of("run.yaml", "Job")
    job["spec"]["template"]["spec"]["subdomains"] = "spin-run"
    with pytest.raises(ValidationError, match="subdomains"):
        validate(job, VERSION, strict=True)


def test_prefects_worker_makes_a_job_with_gpus_and_shared_memory_from_the_template():
    job = filled_in(gpus=4, node_selector={"nvidia.com/gpu.product": "H100"}, shared_memory="8Gi").job_manifest
    spec = job["spec"]["template"]["spec"]
    # Prefect itself sets these two, which a pod does not have; a cluster warns and continues.
    assert (spec.pop("parallelism"), spec.pop("completions")) == (1, 1)
    validate(job, VERSION, strict=True)
    assert container_of(job)["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container_of(job)["volumeMounts"]}
    own = {"cache": "/cache", "tmp": "/tmp"}
    assert mounts == {"runs": "/runs", "models": "/models", "shared-memory": "/dev/shm"} | own
    assert "prefect" in " ".join(container_of(job)["args"])


def test_the_template_does_without_any_value_and_every_variable_is_used():
    job = filled_in().job_manifest
    for field in ("parallelism", "completions"):
        del job["spec"]["template"]["spec"][field]
    validate(job, VERSION, strict=True)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template()["job_configuration"])))
    assert used == set(template()["variables"]["properties"])


def test_secrets_are_referred_to_by_name():
    """The worker's own password reaches a run by the name of its secret, as its settings in the manifest ask for."""
    from prefect_kubernetes.worker import KubernetesWorker

    settings = {item["name"]: item for item in container_of(manifest_of("worker.yaml", "Deployment"))["env"]}
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    secret = {"name": settings[f"{prefix}_NAME"]["value"], "key": settings[f"{prefix}_KEY"]["value"]}
    assert settings["PREFECT_API_AUTH_STRING"]["valueFrom"] == {"secretKeyRef": secret}
    made = filled_in(auth="team:planted")
    replace = KubernetesWorker._replace_env_variable_with_secret
    asyncio.run(replace(None, "PREFECT_API_AUTH_STRING", made, secret["name"], secret["key"]))
    environment = {item["name"]: item for item in container_of(made.job_manifest)["env"]}
    assert environment["PREFECT_API_AUTH_STRING"]["valueFrom"] == {"secretKeyRef": secret}
    assert environment["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "spin", "key": "hf-token", "optional": True}
    assert "planted" not in json.dumps(made.job_manifest)


def test_runs_get_the_servers_address_for_browsers():
    """The worker sets it, or the manifest of a run on several machines. Browsers cannot resolve the cluster's names."""
    place = {"name": "PREFECT_UI_URL", "value": "http://127.0.0.1:4200"}
    for manifest, kind in (("worker.yaml", "Deployment"), ("run.yaml", "Job")):
        assert place in container_of(manifest_of(manifest, kind))["env"]
    assert place in container_of(filled_in(ui=place["value"]).job_manifest)["env"]


@pytest.mark.parametrize("kind", ["of a deployment", "on several machines"])
def test_secrets_of_ones_own_come_from_a_secret_that_may_be_missing(kind):
    """Its keys are variables: those of stores, of a judge, of sinks. The worker, which runs no phases, has none."""
    job = filled_in().job_manifest if kind == "of a deployment" else manifest_of("run.yaml", "Job")
    (source,) = container_of(job)["envFrom"]
    assert source == {"secretRef": {"name": "spin-environment", "optional": True}}
    assert "envFrom" not in container_of(manifest_of("worker.yaml", "Deployment"))


def test_the_worker_has_exactly_the_permissions_that_it_needs():
    (binding,) = [document for document in documents("worker.yaml") if document["kind"] == "RoleBinding"]
    role, deployment = manifest_of("worker.yaml", "Role"), manifest_of("worker.yaml", "Deployment")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == deployment["spec"]["template"]["spec"]["serviceAccountName"]
    allowed = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert allowed["jobs"] >= {"create", "delete", "get", "list", "watch"}
    assert allowed["pods"] == {"get", "list", "watch"}
    assert "secrets" not in allowed


def test_the_claims_that_pods_use_are_there():
    claims = {document["metadata"]["name"] for document in documents("worker.yaml") if "Claim" in document["kind"]}
    for job in (filled_in().job_manifest, manifest_of("run.yaml", "Job")):
        volumes = job["spec"]["template"]["spec"]["volumes"]
        assert {
            volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume
        } == claims


def test_the_pods_of_a_run_find_each_other_by_a_name_of_the_service():
    service, job = manifest_of("run.yaml", "Service"), manifest_of("run.yaml", "Job")
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    environment = {item["name"]: item for item in container_of(job)["env"]}
    (port,) = service["spec"]["ports"]
    assert environment["SPIN_RENDEZVOUS"]["value"] == f"{name}-0.{service['metadata']['name']}:{port['port']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert service["spec"]["publishNotReadyAddresses"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(environment["SPIN_NODES"]["value"])


def test_a_pod_gets_all_settings_of_a_node(monkeypatch, tmp_path):
    job = manifest_of("run.yaml", "Job")
    program, flag, module, *arguments = container_of(job)["args"]
    assert (program, flag, module) == ("python", "-m", "infra.node")
    environment = {item["name"]: item.get("value", "1") for item in container_of(job)["env"]}
    led = []
    monkeypatch.setattr(node, "lead", lambda line, mark: led.append((line, mark)))
    done = CliRunner().invoke(
        node.main, arguments, env=environment | {"SPIN_NODE_RANK": "0", "SPIN_RUNS": str(tmp_path)}
    )
    assert done.exit_code == 0, done.output
    ((line, mark),) = led
    assert line[:4] == ["run", "zephyr-7b", "--lineage", "mine"]
    assert "train.speed.nodes=2" in line
    assert f"train.speed.rendezvous={environment['SPIN_RENDEZVOUS']}" in line
    assert line[-4:] == ["--set", "train.speed.ranks=8", "--set", "generate.speed.workers=8"]
    assert mark == tmp_path / ".nodes" / "1.ended"


def test_the_log_that_is_followed_is_that_of_the_pod_that_leads():
    """`job/NAME` would follow any of them."""
    labels = manifest_of("run.yaml", "Service")["spec"]["selector"] | {"batch.kubernetes.io/job-completion-index": "0"}
    chosen = ",".join(f"{name}={value}" for name, value in labels.items())
    assert f"logs --follow -l {chosen}\n" in (FOLDER / "run.yaml").read_text()


def test_a_run_is_not_retried_for_a_mistake_of_the_user():
    job = manifest_of("run.yaml", "Job")
    ends = [rule["onExitCodes"] for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert ends == [{"containerName": container_of(job)["name"], "operator": "In", "values": [SpinError.exit_code]}]


def pods():
    """The pods that the manifests and the template make, by their kind."""
    made = {
        "worker": manifest_of("worker.yaml", "Deployment"),
        "nodes": manifest_of("run.yaml", "Job"),
        "run": filled_in().job_manifest,
    }
    return {name: manifest["spec"]["template"] for name, manifest in made.items()}


@pytest.mark.parametrize("name", ["worker", "nodes", "run"])
def test_a_pod_keeps_to_the_restricted_profile_and_writes_to_volumes_alone(name):
    """The rules of Kubernetes' Pod Security Standards, and a root file system that cannot be written to."""
    pod = pods()[name]["spec"]
    assert {"hostNetwork", "hostPID", "hostIPC"} & set(pod) == set()
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == 1000
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {kind for volume in pod["volumes"] for kind in volume} == {"name", "emptyDir"} | (
        {"persistentVolumeClaim"} if name != "worker" else set()
    )
    assert pod.get("automountServiceAccountToken", True) is (name == "worker")
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    limits = container["resources"]["limits"]
    assert {"cpu", "memory", "ephemeral-storage"} <= set(limits)
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert all("sizeLimit" in volume["emptyDir"] for volume in volumes.values() if "emptyDir" in volume)
    writable = {mount["mountPath"] for mount in container["volumeMounts"]}
    environment = {item["name"]: item.get("value", "") for item in container["env"]}
    for variable in ("HOME", "PREFECT_HOME"):
        assert any(environment[variable].startswith(path) for path in writable), variable


def test_a_run_has_the_homes_of_its_own_template_whatever_its_worker_has():
    from prefect.settings import PREFECT_HOME, temporary_settings

    with temporary_settings({PREFECT_HOME: "/elsewhere"}):
        made = container_of(filled_in().job_manifest)["env"]
    homes = {item["value"] for item in made if item["name"] == "PREFECT_HOME"}
    (worker,) = [item["value"] for item in container_of(manifest_of("worker.yaml", "Deployment"))["env"]
                 if item["name"] == "PREFECT_HOME"]  # fmt: skip
    assert homes <= {"/cache/prefect", "/elsewhere"}
    assert worker == "/cache/prefect", "a worker may pass its own on, so they are the same"


@pytest.mark.parametrize(
    "variables",
    [
        *({"command": "touch owned"}, {"env": {"LD_PRELOAD": "x"}}, {"image": "evil"}, {"namespace": "kube-system"}),
        *({"secret": "other"}, {"environment_secret": "other"}, {"runs_claim": "other"}, {"labels": {"a": "b"}}),
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_a_run_chooses_no_other_command_image_secret_or_label(variables):
    from prefect.utilities.schema_tools import ValidationError as Refused
    from prefect.utilities.schema_tools import validate as check

    with pytest.raises(Refused):  # what the server does
        check(variables, template()["variables"], raise_on_error=True)
    plain, made = (json.dumps(filled_in(**values).job_manifest, sort_keys=True) for values in ({}, variables))
    assert made == plain, "what the worker does, if it reached that"


def test_network_policies_take_all_our_pods_and_open_what_they_need():
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in documents("network-policy.yaml")}
    for name, pod in pods().items():
        labels = pod["metadata"]["labels"]
        assert policies["spin-deny"]["podSelector"]["matchLabels"].items() <= labels.items(), name
    assert set(policies["spin-deny"]) == {"podSelector", "policyTypes"}, "it opens nothing"
    assert policies["spin-deny"]["policyTypes"] == ["Ingress", "Egress"]
    dns, server, internet = policies["spin-egress"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    address = urlsplit({item["name"]: item for item in container_of(manifest_of("worker.yaml", "Deployment"))["env"]}
                       ["PREFECT_API_URL"]["value"])  # fmt: skip
    assert server["ports"] == [{"protocol": "TCP", "port": address.port}]
    assert server["to"][0]["podSelector"] == policies["spin-server"]["podSelector"]
    closed = [ipaddress.ip_network(block) for block in internet["to"][0]["ipBlock"]["except"]]
    for host in ("169.254.169.254", "10.96.0.1", "192.168.1.1", "172.20.0.1"):
        assert any(ipaddress.ip_address(host) in network for network in closed), host
    worker = manifest_of("worker.yaml", "Deployment")["spec"]["template"]["metadata"]["labels"]
    chosen = policies["spin-worker-kubernetes"]["podSelector"]["matchLabels"]
    assert chosen.items() <= worker.items()
    assert all(not chosen.items() <= pods()[name]["metadata"]["labels"].items() for name in ("nodes", "run"))
    nodes = manifest_of("run.yaml", "Service")["spec"]["selector"]
    assert policies["spin-nodes"]["podSelector"]["matchLabels"] == nodes
    assert [
        policy["podSelector"]["matchLabels"] for rule in policies["spin-nodes"]["ingress"] for policy in rule["from"]
    ] == [nodes]


def test_the_image_has_what_the_worker_runs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("prefect-kubernetes") for requirement in extras["kubernetes"])
    (script,) = (ROOT / "infra" / "docker").glob("install.sh")
    assert "kubernetes" in script.read_text()
