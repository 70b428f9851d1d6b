"""Commands about the environment: `spin doctor` and the shell's completion."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from spin_core.preflight.findings import Finding, Findings


def findings(result) -> dict[str, Finding]:
    return {finding.subject: finding for finding in Findings.model_validate_json(result.stdout).findings}


def test_doctor_has_one_line_for_each_part_of_the_environment(spin):
    result = spin("doctor", "--json")
    subjects = ["spin", "packages", "extras", "machine", "GPU", "vLLM", "hub", "runs", "downloads", "port", "proxies"]
    assert list(findings(result)) == subjects
    assert all("\n" not in finding.text for finding in findings(result).values())
    assert "no problems found" in spin("doctor").stdout


def test_doctor_names_a_package_that_is_too_old_and_what_is_missing(spin, monkeypatch):
    from spin_core.preflight import environment

    installed = environment._version
    monkeypatch.setattr(
        environment, "_version", lambda name: {"torch": "1.0", "ray": "missing"}.get(name, installed(name))
    )
    result = findings(spin("doctor", "--json", status=2))
    assert result["packages"].level == "wrong"
    assert "torch is 1.0, not " in result["packages"].text
    assert "pip install 'torch" in result["packages"].text
    assert "ray" in result["extras"].text.split("not installed: ")[1]


def test_doctor_looks_into_vllms_environment(spin, monkeypatch, tmp_path):
    from spin_core.preflight import environment

    python = tmp_path / "bin" / "python"
    monkeypatch.setattr(environment.interpreter, "vllm_python", lambda _: python)
    assert "make vllm installs it" in findings(spin("doctor", "--json"))["vLLM"].text
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert "does not start" in findings(spin("doctor", "--json", status=2))["vLLM"].text
    python.write_text("""#!/bin/sh\necho '{"versions": {"vllm": "0.32.0"}, "missing": ["spin_core"]}'\n""")
    assert "vllm 0.32.0, without spin_core" in findings(spin("doctor", "--json", status=2))["vLLM"].text


def test_doctor_sees_a_taken_port_a_read_only_folder_and_proxies_without_their_passwords(spin, monkeypatch, tmp_path):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.example.org:3128")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = spin("doctor", "--json", "--port", str(taken.getsockname()[1]))
    assert "is taken" in findings(result)["port"].text
    assert findings(result)["proxies"].text == "https by proxy.example.org:3128; not within this machine"
    monkeypatch.setattr(os, "access", lambda path, mode: (mode, path) != (os.W_OK, tmp_path))
    runs = findings(spin("doctor", "--json", "--runs", str(tmp_path), status=2))["runs"]
    assert runs.text == f"{tmp_path} is not writable: choose another folder with --runs or SPIN_RUNS"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_of_the_shell(spin, shell):
    script = spin("completion", shell).stdout
    assert f"_SPIN_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("spin lead", ["leaderboard"]),
        ("spin run de", ["demo"]),
        ("spin show ta", ["tale"]),
        ("spin show tale --h", ["--html", "--help"]),
    ],
)
def test_the_shell_completes_commands_recipes_lineages_and_options(lineage, words, offered):
    environment = {
        **os.environ,
        "_SPIN_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
        "SPIN_RUNS": str(lineage.runs),
    }
    code = "from flows.command_line.main import main; main(prog_name='spin')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == offered, done.stderr
