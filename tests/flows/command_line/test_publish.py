"""`spin publish`: a folder or a repository with weights, card and recipe; and pairs that TRL reads."""

import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_core.config.resolve import resolve
from spin_core.errors import TryAgain
from spin_core.remote import hub as hub_upload
from tests.support.lineages.talking import build_talking_lineage
from tests.support.processes.command_runner import refusal, run_spin
from tests.support.servers.hub import TOKEN, running_hub


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    return build_talking_lineage(tmp_path_factory.mktemp("talking"))


@pytest.fixture
def publish(talking, monkeypatch):
    """`spin publish tale` in this process."""
    monkeypatch.setenv("SPIN_RUNS", str(talking.runs))
    return lambda *arguments, status=0: run_spin("publish", "tale", *arguments, status=status)


@pytest.fixture(scope="module")
def hub():
    with running_hub() as running:
        yield running


def upload(hub, talking, *arguments: str, token: str = TOKEN, answer: str = "") -> subprocess.CompletedProcess[str]:
    """`spin publish tale` in its own process, since the hub's library reads its address when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "flows.command_line", "publish", "tale", *arguments, "--runs", str(talking.runs)]
    return subprocess.run(command, env=environment, input=answer, capture_output=True, text=True, check=False)


def test_a_folder_has_weights_tokenizer_sampling_card_and_recipe(publish, talking, tmp_path):
    folder = tmp_path / "published"
    assert publish(2, folder).stdout == f"written to {folder}\n"
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert {"generation_config.json", "README.md", "recipe.yaml"} <= {path.name for path in folder.iterdir()}
    card = ModelCard.load(folder / "README.md")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    row = {report.suite: report.scores for report in talking.reports(2)}["self-play"]
    assert results == {"heldout_nll": pytest.approx(row["heldout_nll"].value)}
    assert card.data.library_name == "transformers"
    text = card.content
    assert talking.player(1).digest in text
    assert talking.records()[0].prompts.digest in text
    assert "| heldout_nll ↓ | 3.50 ± 0.42 | 2.90 ± 0.41 | -0.600 [-0.664, -0.536] |" in text
    assert "→ nearer to the human responses' value is better." in text
    assert "`temperature` 0.5" in text
    assert resolve("demo", file=folder / "recipe.yaml") == talking.config
    assert "exists already" in refusal(publish(2, folder, status=2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own
def test_pairs_are_a_data_set_that_trl_reads(publish, tmp_path):
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    from tests.support.helpers import character_tokenizer, save_tiny_model

    folder = tmp_path / "pairs"
    publish(1, folder, "--pairs")
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"prompt", "chosen", "rejected"} <= set(rows.column_names)
    assert "1 pairs that iteration 1 of the lineage `tale`" in (folder / "README.md").read_text("utf-8")
    tokenizer = character_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "model", tokenizer))
    settings = DPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[], max_steps=1, bf16=False,
                         gradient_checkpointing=False)  # fmt: skip
    trainer = DPOTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    assert trainer.train().training_loss > 0


@pytest.mark.slow
def test_an_upload_is_private_and_asks_before_it_replaces(hub, talking):
    done = upload(hub, talking, "2", "hf://me/tale")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.url}/models/me/tale/commit/")
    assert hub.private["models/me/tale"]
    assert {"model.safetensors", "README.md", "recipe.yaml", "tokenizer.json"} <= hub.files["models/me/tale"].keys()
    unconfirmed = upload(hub, talking, "2", "hf://me/tale", answer="n\n")
    assert unconfirmed.returncode == 2
    assert "hf://me/tale exists and is left as it is" in unconfirmed.stderr
    assert hub.commits == 1
    assert upload(hub, talking, "2", "hf://me/tale", "--yes").returncode == 0
    assert hub.commits == 2
    public = upload(hub, talking, "0", "hf://me/pairs", "--pairs", "--public")
    assert public.returncode == 0, public.stderr
    assert not hub.private["datasets/me/pairs"]
    refused = upload(hub, talking, "2", "hf://me/other", token="hf_reader")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error  the hub refuses hf://me/other (401): set HF_TOKEN")


def test_gguf_is_made_by_the_converter_on_the_path(publish, tmp_path, monkeypatch):
    converter = tmp_path / "bin" / "convert_hf_to_gguf.py"
    converter.parent.mkdir()
    converter.write_text('#!/bin/sh\ntest -f "$1/model.safetensors" && test "$2" = --outfile && echo GGUF > "$3"\n')
    converter.chmod(0o755)
    monkeypatch.setenv("PATH", f"{converter.parent}{os.pathsep}{os.environ['PATH']}")
    publish(1, tmp_path / "made", "--gguf")
    assert (tmp_path / "made" / "tale-1.gguf").read_text() == "GGUF\n"
    converter.write_text("#!/bin/sh\necho Model LlamaForCausalLM is not supported >&2\nexit 1\n")
    refused = refusal(publish(1, tmp_path / "refused", "--gguf", status=2))
    assert "cannot convert this model (Model LlamaForCausalLM is not supported)" in refused
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["9", "out"], "lineage tale has no θ_9"),
        (["2", "s3://bucket/tale"], "s3://bucket/tale is neither a folder nor hf://user/name: name one of the two"),
        (["2", "hf://name"], "hf://name is not a repository of the hub: write hf://user/name"),
        (["2", "out", "--gguf"], "--gguf needs llama.cpp's convert_hf_to_gguf.py, which is not on the PATH: "),
        (
            ["2", "out", "--adapter"],
            "was trained with all its weights, not train.lora: use --format merged, or publish without --adapter",
        ),
        (["2", "out", "--adapter", "--pairs"], "--adapter, --pairs and --gguf exclude each other"),
    ],
)
def test_what_cannot_be_published_is_one_line(publish, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refusal(publish(*arguments, status=2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("client", ["httpx", "httpx2"])
def test_a_hub_that_does_not_answer_is_one_line(tmp_path, monkeypatch, client):
    errors = pytest.importorskip(client)

    def fail(*_, **__):
        raise errors.ConnectError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_exists", fail)
    with pytest.raises(
        TryAgain, match=r"the hub does not answer \(.*Name or service not known\): run the same command"
    ):
        hub_upload.upload(tmp_path, "hf://me/tale", "model", private=True, confirm=bool)
