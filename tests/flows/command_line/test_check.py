"""Commands that check: `spin check` and `spin verify`."""

import json
import shutil
import subprocess
import sys

from spin_core.preflight.findings import Findings


def test_verify_says_that_a_lineage_is_whole(spin):
    assert spin("verify", "tale").stdout == "15 published folders of tale are whole, and its records agree with them\n"


def test_verify_finds_a_flipped_byte(spin, lineage, tmp_path):
    shutil.copytree(lineage.runs, tmp_path / "runs")
    path = tmp_path / "runs" / "tale" / "iter_00" / "generations" / "shard-00000.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    result = spin("verify", "tale", "--runs", tmp_path / "runs", status=1)
    assert result.stderr == f"damaged  {path}: changed since it was published\n"
    assert result.stdout == ""


def test_check_reports_what_is_ready_and_what_is_not(spin, tmp_path):
    ready = spin("check", "demo", "--set", "prompts.sample=64", "--runs", tmp_path / "runs")
    assert "ready: no problems found" in ready.stdout
    assert not (tmp_path / "runs").exists()
    spoilt = spin("check", "demo", "--set", "prompts.max_prompt_tokens=3000", status=2)
    assert "not ready: 1 thing is wrong" in spoilt.stdout
    as_json = spin("check", "demo", "--set", "prompts.max_prompt_tokens=3000", "--json", status=2)
    findings = Findings.model_validate_json(as_json.stdout)
    assert [finding.subject for finding in findings.findings if finding.level == "wrong"] == ["context"]


def test_check_of_a_configuration_that_is_wrong_loads_nothing_heavy():
    code = (
        "import sys\nfrom flows.command_line.main import main\n"
        "try:\n    main(['check', 'demo', '--set', 'train.betta=1'])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert "did you mean train.beta?" in done.stderr


def test_data_shows_rows_and_numbers(spin, tmp_path):
    shown = spin("data", "demo", "--rows", "2", "--set", "prompts.sample=32").stdout
    assert shown.count(" trained ▌ ") == 2
    assert "32 rows: 32 prompts with a response to train on, 300 held out" in shown
    as_json = json.loads(spin("data", "demo", "--rows", "1", "--set", "prompts.sample=32", "--json").stdout)
    assert [len(source["samples"]) for source in as_json] == [1]
    missing = spin("data", "demo", "--set", f"prompts.source.path={tmp_path}/none.jsonl", status=2)
    assert missing.stderr.startswith(f"error  {tmp_path}/none.jsonl does not exist: ")


def test_data_shows_rows_of_which_too_few_can_be_held_out(spin, tiny_model, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"prompt": "Why?", "response": "So."}\n')
    sets = (f"model.path={tiny_model}", f"prompts.source.path={tmp_path}/one.jsonl", "evaluate.exact=false")
    shown = spin("data", "demo", *(part for text in sets for part in ("--set", text)), status=2)
    assert shown.stdout.count(" trained ▌ ") == 1
    assert "1 row: 1 prompt with a response to train on" in shown.stdout
    assert "but the data have only 1 different prompt: give more rows" in " ".join(shown.stderr.split())


def test_check_of_a_broken_model_ends_with_status_2(spin, tiny_model, tmp_path):
    model = tmp_path / ("a-long-name" * 9)  # longer than the terminal is wide
    shutil.copytree(tiny_model, model)
    (model / "config.json").write_text("{")
    checked = spin("check", "demo", "--set", f"model.path={model}", "--set", "chat.template=plain", status=2)
    without_breaks = "".join(checked.stdout.split())
    assert f"{model}/config.json cannot be read as JSON".replace(" ", "") in without_breaks


def test_a_forecast_of_another_machine_is_printed_or_given_as_json(spin):
    printed = spin("check", "zephyr-7b", "--on", "8xH100", "--price", "2.5").stdout
    assert "zephyr-7b on 8 x H100 80 GB" in printed
    assert "the cheapest that fits, all weights" in printed
    assert "--set train.speed.ranks=8" in printed
    assert "money" in printed
    result = json.loads(spin("check", "zephyr-7b", "--on", "8xH100", "--json").stdout)
    assert len(result["options"]) == 8
    assert result["price"] is None


def test_a_machine_on_which_nothing_fits_has_another_status(spin):
    assert "training does not fit" in spin("check", "zephyr-7b", "--on", "8xT4", status=2).stdout
    assert "generation does not fit" in spin("check", "zephyr-7b", "--on", "T4", status=2).stdout


def test_what_belongs_to_a_forecast_needs_a_machine(spin):
    assert "need --on" in spin("check", "demo", "--price", "2", status=2).stderr
    assert "'8xB200' is not a known machine" in spin("check", "demo", "--on", "8xB200", status=2).stderr
