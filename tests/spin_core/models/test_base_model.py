"""θ_0 on its way into a lineage."""

import json
import shutil

import pytest
import torch

from spin_core.config.model import ChatConfig, ModelConfig, SftConfig
from spin_core.data.tokenizer import context_length, load_tokenizer
from spin_core.errors import ConfigError, ModelError
from spin_core.models.adapters import copy_as_stacked
from spin_core.models.files import ADAPTERS, save_model
from spin_core.models.loading import load_model
from spin_core.phases import base
from spin_core.runtime.phase import execute
from spin_core.runtime.progress import Progress
from spin_core.store import artifacts
from spin_core.store.jobs import BaseJob
from spin_core.store.records import ModelVersion
from spin_core.store.weights_index import WEIGHTS_INDEX
from tests.support.helpers import character_tokenizer, data_folder

CPU = ModelConfig(device="cpu")


def publish(folder, chat="plain", sft=None, seed=0, **model):
    model = ModelConfig(**{**model, "path": str(model.get("path", ""))})
    job = BaseJob(output=folder / "model", seed=seed, model=model, sft=sft, chat=ChatConfig(template=chat))
    return execute(job, ModelVersion, base.run, Progress())


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


def test_the_published_model_has_the_logits_of_the_original(tiny_model, tmp_path):
    version = publish(tmp_path, path=tiny_model)
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        original, copied = (load_model(folder, CPU)(ids).logits for folder in (tiny_model, version.path))
    assert torch.equal(original, copied)
    assert (
        load_tokenizer(version.path, CPU)("Hi\n")["input_ids"] == load_tokenizer(tiny_model, CPU)("Hi\n")["input_ids"]
    )
    assert (version.t, version.parent) == (0, None)
    assert artifacts.verify(version.path) == []


def test_weights_are_linked_and_not_copied(tiny_model, tmp_path):
    version = publish(tmp_path, path=tiny_model)
    link = version.path / "model.safetensors"
    assert link.is_symlink()
    assert link.resolve() == (tiny_model / "model.safetensors").resolve()


def test_the_digest_is_of_the_content_and_not_of_the_place(tiny_model, copy, tmp_path):
    assert publish(tmp_path / "a", path=tiny_model).digest == publish(tmp_path / "b", path=copy).digest


def test_an_interrupted_attempt_leaves_nothing_behind(tiny_model, tmp_path):
    scratch = tmp_path / "scratch"
    (scratch / "log").mkdir(parents=True)
    (scratch / "model.safetensors").symlink_to(tiny_model / "gone")
    job = BaseJob(output=tmp_path, model=ModelConfig(path=str(tiny_model)), sft=None, chat=ChatConfig(template="plain"))
    base.run(job, scratch, Progress())
    assert (scratch / "model.safetensors").resolve() == (tiny_model / "model.safetensors").resolve()
    assert not (scratch / "log").exists()


def test_sharded_weights_are_linked_with_their_index(tiny_model, tmp_path):
    sharded = tmp_path / "sharded"
    load_model(tiny_model, CPU).save_pretrained(sharded, max_shard_size="10KB")
    load_tokenizer(tiny_model, CPU).save_pretrained(sharded)
    version = publish(tmp_path, path=sharded)
    assert len(list(version.path.glob("*.safetensors"))) > 1
    original, copied = (load_model(folder, CPU).state_dict() for folder in (tiny_model, version.path))
    assert all(torch.equal(original[name], copied[name]) for name in original)


def test_sampling_habits_of_the_original_are_left_out(copy, tmp_path):
    (copy / "generation_config.json").write_text(json.dumps({"temperature": 0.2, "top_p": 0.5, "eos_token_id": 2}))
    version = publish(tmp_path, path=copy)
    written = json.loads((version.path / "generation_config.json").read_text())
    assert written == {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0}


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_every_version_keeps_all_ends_of_the_model(copy, tmp_path, file):
    (copy / "generation_config.json").unlink()
    settings = json.loads((copy / "config.json").read_text()) if file == "config.json" else {}
    (copy / file).write_text(json.dumps({**settings, "eos_token_id": [2, 41, 40]}))
    version = publish(tmp_path, path=copy)
    stacked = tmp_path / "stacked"
    copy_as_stacked(version.path, stacked)
    (stacked / ADAPTERS).mkdir()
    for folder in (version.path, stacked):
        saved = tmp_path / "saved" / folder.name
        save_model(load_model(folder, CPU), load_tokenizer(folder, CPU), saved)
        for version_folder in (folder, saved):
            assert json.loads((version_folder / "generation_config.json").read_text())["eos_token_id"] == [2, 41, 40]


def test_configured_tokens_are_saved_with_the_tokenizer(copy, tmp_path):
    character_tokenizer(pad_token="").save_pretrained(copy)
    version = publish(tmp_path, path=copy, pad_token="<unk>", eos_token="~")
    tokenizer = load_tokenizer(version.path, CPU)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<unk>", "~")
    assert len(tokenizer) == 100


def test_a_tokenizer_can_come_from_another_folder(copy, tiny_model, tmp_path):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    version = publish(tmp_path, path=copy, tokenizer=str(tiny_model))
    assert load_tokenizer(version.path, CPU).eos_token == "</s>"


def test_the_real_small_model_is_brought_in(tmp_path):
    source = data_folder("models", "babyllama-105")
    version = publish(tmp_path, path=source, pad_token="<unk>")
    tokenizer = load_tokenizer(version.path, CPU)
    assert tokenizer("Once upon a time")["input_ids"] == load_tokenizer(source, CPU)("Once upon a time")["input_ids"]
    assert (tokenizer.pad_token, tokenizer.eos_token, context_length(version.path, CPU)) == ("<unk>", "</s>", 256)
    assert sum(weight.numel() for weight in load_model(version.path, CPU).parameters()) == 936_448
    assert artifacts.verify(version.path) == []


# Refusals


def test_a_path_that_is_no_folder_is_rejected(tmp_path):
    with pytest.raises(ModelError, match=r"absent is not a folder: set model.path"):
        publish(tmp_path, path=tmp_path / "absent")


def test_a_hub_name_that_cannot_be_reached_is_rejected(tmp_path):
    with pytest.raises(
        ModelError, match=r"nobody/nothing is not a folder here, and the hub did not provide it .*model.path"
    ):
        publish(tmp_path, path="nobody/nothing")


def test_a_folder_without_a_model_is_rejected(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no safetensors weights: set model\.path to"):
        publish(tmp_path, path=tmp_path / "empty")


def test_weights_without_a_configuration_are_rejected(copy, tmp_path):
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config.json of a model that transformers knows"):
        publish(tmp_path, path=copy)


def test_an_adapter_is_rejected(tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter, not a model: merge it"):
        publish(tmp_path, path=tmp_path / "lora")


def test_pickled_weights_are_rejected(copy, tmp_path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model.bin\): convert them with save_pretrained"):
        publish(tmp_path, path=copy)


def test_a_missing_shard_is_named(copy, tmp_path):
    (copy / WEIGHTS_INDEX).write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
    )
    with pytest.raises(ModelError, match=r"lacks model-2.safetensors: copy or fetch the model again"):
        publish(tmp_path, path=copy)


def test_a_missing_tokenizer_is_rejected(copy, tmp_path):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"holds no tokenizer that loads .*set model.tokenizer"):
        publish(tmp_path, path=copy)


def test_a_tokenizer_without_eos_is_rejected(copy, tmp_path):
    character_tokenizer(eos_token="").save_pretrained(copy)
    with pytest.raises(ModelError, match=r"no end-of-sequence token: set model.eos_token"):
        publish(tmp_path, path=copy)


def test_the_error_for_a_tokenizer_without_padding_suggests_a_token(copy, tmp_path):
    character_tokenizer(pad_token="", specials=("<s>", "</s>", "<unk>")).save_pretrained(copy)
    with pytest.raises(ModelError, match=r"no padding token: set model.pad_token, for instance to '<unk>'"):
        publish(tmp_path, path=copy)


def test_a_token_outside_the_vocabulary_is_rejected(tiny_model, tmp_path):
    with pytest.raises(ModelError, match=r"model.pad_token '\[PAD\]' is not in the tokenizer's vocabulary"):
        publish(tmp_path, path=tiny_model, pad_token="[PAD]")


def test_a_tokenizer_larger_than_the_model_is_rejected(copy, tmp_path):
    character_tokenizer(("<pad>", "<s>", "</s>", "<unk>", "<more>")).save_pretrained(copy)
    with pytest.raises(ModelError, match=r"the tokenizer has 101 tokens, but the model in .* embeds only 100"):
        publish(tmp_path, path=copy)


def test_a_missing_chat_template_is_rejected_before_any_compute(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"no chat template: set chat.template"):
        publish(tmp_path, path=tiny_model, chat="tokenizer")


def test_remote_code_is_rejected_unless_it_is_trusted(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text("raise SystemExit('this code ran')\n")
    with pytest.raises(ModelError, match=r"needs Python code that comes with it: .*model.trust_remote_code"):
        publish(tmp_path, path=copy)


def test_trusted_code_comes_along(copy, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    version = publish(tmp_path, path=copy, trust_remote_code=True)
    trusting = ModelConfig(device="cpu", trust_remote_code=True)
    assert type(load_model(version.path, trusting)).__name__ == "Own"
    assert context_length(version.path, trusting) == 1024


def test_a_model_of_another_kind_is_rejected(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "clip", "architectures": ["CLIPModel"]}))
    with pytest.raises(ModelError, match="is not a causal language model"):
        publish(tmp_path, path=copy)


def test_a_configuration_without_a_start_is_rejected(tmp_path):
    with pytest.raises(ModelError, match=r"no model to start from: set model.path"):
        publish(tmp_path)


# A fresh model


def test_a_new_model_has_the_configured_shape(tmp_path):
    shape = SftConfig(hidden_size=24, layers=3, heads=2, intermediate_size=40)
    version = publish(tmp_path, sft=shape)
    config = load_model(version.path, CPU).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 3, 2)
    assert config.vocab_size == len(load_tokenizer(version.path, CPU))
    assert artifacts.verify(version.path) == []


def test_the_seed_decides_a_fresh_model(tmp_path):
    digest, same_seed, other_seed = (
        publish(tmp_path / name, sft=SftConfig(), seed=seed).digest for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert digest == same_seed != other_seed


@pytest.mark.parametrize(("width", "heads"), [(30, 4), (12, 4)])
def test_a_width_that_the_heads_cannot_share_is_rejected(tmp_path, width, heads):
    with pytest.raises(ModelError, match=rf"sft.hidden_size {width} is not a multiple of 8, twice sft.heads"):
        publish(tmp_path, sft=SftConfig(hidden_size=width, heads=heads))
