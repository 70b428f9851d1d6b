"""A run that first fine-tunes the given model on the data, as the paper's model was: θ_0 is the result."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support.helpers import character_tokenizer, save_tiny_model

pytestmark = pytest.mark.slow


def record_of(folder):
    """The record that a published folder's manifest holds."""
    return json.loads((folder / "manifest.json").read_text())["record"]


def test_a_given_model_is_fine_tuned_first_and_a_second_lineage_shares_the_result(player_in, tmp_path):
    model = tmp_path / "model"
    save_tiny_model(model, character_tokenizer())
    player = player_in(tmp_path / "runs")
    settings = (
        f"--set=model.path={model}",
        "--set=sft_first=true",
        "--set=sft.train.learning_rate=0.001",
        "--set=sft.train.epochs=1",
        "--set=controls={}",
        "--set=evaluate.exact=false",
        "--set=evaluate.main_metric=heldout_nll",
        "--set=evaluate.headline=[]",
        "--iterations=1",
    )
    player.spin(*player.arguments("one", *settings), one_process=True)
    given = record_of(player.runs / "one" / "base" / "model")
    (base,) = (player.runs / ".sft").glob("*/model")
    record = record_of(base)
    assert record["t"] == 0
    assert record["parent"] == given["digest"]
    weights = [load_file(folder / "model.safetensors") for folder in (base, model)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    first = json.loads((player.runs / "one" / "iter_00" / "record.json").read_text())
    assert first["opponent"]["digest"] == record["digest"]
    assert record_of(player.runs / "one" / "iter_00" / "model")["parent"] == record["digest"]

    trained = base.stat().st_mtime_ns
    player.spin(*player.arguments("two", *settings, "--set=train.beta=0.2"), one_process=True)
    assert list((player.runs / ".sft").glob("*/model")) == [base]
    assert base.stat().st_mtime_ns == trained
    assert player.spin("verify", "two").returncode == 0
