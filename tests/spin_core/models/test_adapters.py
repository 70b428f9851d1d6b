"""Versions with adapters: merged, stacked, combined into one adapter, and read by peft."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import DamagedArtifact, ModelError
from spin_core.models.adapters import combine_adapters, merge_adapters, read_adapters, write_adapter
from spin_core.models.files import check_safetensors
from spin_core.models.loading import load_model
from spin_core.store import identity
from tests.support.models.adapted import (
    BF16,
    CPU,
    assert_same_logits,
    gpt2,
    logits,
    publish_adapter,
)

__all__ = ["gpt2"]


@pytest.mark.parametrize("fixture", ["tiny_model", "gpt2"])
@pytest.mark.parametrize("across", ["merge", "stack"])
def test_a_published_version_has_the_logits_of_the_trained_player(request, tmp_path, fixture, across):
    start = request.getfixturevalue(fixture)
    player = publish_adapter(tmp_path / "v1", start, 0, across=across)
    assert not torch.allclose(logits(player), logits(load_model(start, CPU)), atol=1e-3)
    assert_same_logits(load_model(tmp_path / "v1", CPU), player)
    second = publish_adapter(tmp_path / "v2", tmp_path / "v1", 1, across=across)
    assert_same_logits(load_model(tmp_path / "v2", CPU), second)
    assert load_tokenizer(tmp_path / "v2", CPU).eos_token == "</s>"
    kept = sorted(path.name for path in (tmp_path / "v2" / "adapters").iterdir())
    assert kept == (["02"] if across == "merge" else ["01", "02"])


@pytest.mark.parametrize("across", ["merge", "stack"])
def test_peft_loads_the_adapter_on_the_version_that_it_was_trained_from(tmp_path, tiny_model, across):
    from peft import PeftModel

    publish_adapter(tmp_path / "v1", tiny_model, 0, across=across, targets=("q_proj", "down_proj"))
    player = publish_adapter(tmp_path / "v2", tmp_path / "v1", 1, across=across, targets=("q_proj", "down_proj"))
    assert_same_logits(
        PeftModel.from_pretrained(load_model(tmp_path / "v1", CPU), tmp_path / "v2" / "adapters" / "02"), player
    )
    config = json.loads((tmp_path / "v2" / "adapters" / "02" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert config["base_model_name_or_path"] is None


def test_a_merged_version_is_a_plain_folder(tmp_path, tiny_model):
    player = publish_adapter(tmp_path / "v1", tiny_model, 0, BF16)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "v1", dtype=torch.bfloat16)
    assert torch.equal(logits(plain), logits(load_model(tmp_path / "v1", BF16)))
    assert_same_logits(plain, player, 0.02)
    assert set(load_file(tmp_path / "v1" / "model.safetensors")) == set(load_file(tiny_model / "model.safetensors"))


def test_merging_adds_in_float32_and_rounds_once(tmp_path, tiny_model):
    publish_adapter(tmp_path / "v1", tiny_model, 0, BF16)
    (adapter,) = read_adapters(tmp_path / "v1")
    name = "model.layers.0.mlp.up_proj"
    before = load_model(tiny_model, BF16).get_submodule(name).weight.float()
    a, b = adapter.factors[name]
    assert torch.equal(
        load_model(tmp_path / "v1", BF16).get_submodule(name).weight, (before + b @ a * 4.0).to(torch.bfloat16)
    )


def test_a_stack_never_changes_the_weights_it_started_with(tmp_path, tiny_model):
    start = shutil.copytree(tiny_model, tmp_path / "v0")
    (start / "manifest.json").write_text("{}")
    for t in range(3):
        publish_adapter(tmp_path / f"v{t + 1}", tmp_path / f"v{t}", t, BF16, across="stack")
    base = tmp_path / "v3" / "base" / "model.safetensors"
    assert base.samefile(start / "model.safetensors")
    assert not (tmp_path / "v3" / "manifest.json").exists()
    exact = load_model(start, BF16).float()
    adapters = read_adapters(tmp_path / "v3")
    assert len(adapters) == 3
    merge_adapters(exact, adapters)
    for name, weight in load_model(tmp_path / "v3", BF16).named_parameters():
        assert torch.equal(weight, exact.get_parameter(name).to(torch.bfloat16)), "rounded once"


def test_a_stack_on_linked_weights_links_to_their_target(tmp_path, tiny_model):
    start = tmp_path / "v0"
    start.mkdir()
    for file in tiny_model.iterdir():
        (start / file.name).symlink_to(file)
    publish_adapter(tmp_path / "v1", start, 0, across="stack")
    assert (tmp_path / "v1" / "base" / "model.safetensors").is_symlink()
    shutil.rmtree(start)
    load_model(tmp_path / "v1", CPU)


def test_a_program_without_adapters_fails_on_a_stack_and_does_not_load_the_base(tmp_path, tiny_model):
    publish_adapter(tmp_path / "v1", tiny_model, 0, across="stack")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "v1")
    with pytest.raises(ModelError, match="spin export --format merged"):
        check_safetensors(tmp_path / "v1")


def test_stacked_adapters_are_combined_into_one_as_in_peft(tmp_path, tiny_model):
    from peft import PeftModel

    publish_adapter(tmp_path / "v1", tiny_model, 0, across="stack")
    player = publish_adapter(tmp_path / "v2", tmp_path / "v1", 1, across="stack")
    combined = combine_adapters(read_adapters(tmp_path / "v2"))
    write_adapter(combined, tmp_path / "one")
    assert combined.config["r"] == 4
    combined_model = PeftModel.from_pretrained(load_model(tiny_model, CPU), tmp_path / "one")
    assert_same_logits(combined_model, player)
    peft_model = PeftModel.from_pretrained(load_model(tiny_model, CPU), tmp_path / "v2" / "adapters" / "01", "a")
    peft_model.load_adapter(tmp_path / "v2" / "adapters" / "02", "b")
    peft_model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both", combination_type="cat")
    peft_model.set_adapter("both")
    assert_same_logits(combined_model, peft_model)


def test_the_same_adapter_is_published_with_the_same_digest(tmp_path, tiny_model):
    for name in ("one", "other"):
        publish_adapter(tmp_path / name, tiny_model, 0, across="stack")
    assert identity.digest_folder(tmp_path / "one")[0] == identity.digest_folder(tmp_path / "other")[0]


def test_the_error_for_a_damaged_adapter_has_its_path(tmp_path, tiny_model):
    publish_adapter(tmp_path / "v1", tiny_model, 0, across="stack")
    (tmp_path / "v1" / "adapters" / "01" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(DamagedArtifact, match=r"the adapter in .*adapters/01 cannot be read"):
        load_model(tmp_path / "v1", CPU)
