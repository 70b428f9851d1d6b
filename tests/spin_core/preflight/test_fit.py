"""The sizes that `auto` stands for: those that fit, in `spin check` and in the phases."""

import dataclasses

from spin_core.config.generate import GenerateConfig
from spin_core.config.resolve import resolve
from spin_core.config.train import TrainConfig
from spin_core.preflight import fit, memory
from spin_core.preflight.sizes import Shape, Texts

# SmolLM2's 135M parameters, in bfloat16.
SMALL = Shape(
    parameters=134_515_008, layers=30, hidden=576, intermediate=1536, query_width=576, key_width=192,
    vocabulary=49_152, itemsize=2, heads=9,
)  # fmt: skip
GB = 1e9


def test_the_largest_power_of_two_within_the_margin_is_taken():
    def tokens(free: float, device: str = "cpu", **fields) -> int:
        return fit.fit_micro_batch(SMALL, TrainConfig(**fields), 1024, device, free)

    assert [tokens(free * GB) for free in (200, 13, 6, 1)] == [16384, 4096, 2048, 512]
    assert tokens(200 * GB, "cuda") == 32768
    assert tokens(6 * GB, gradient_checkpointing=True) == 16384
    for free in (13 * GB, 6 * GB):
        config = TrainConfig(micro_batch_tokens=tokens(free))
        need = sum(memory.training_memory(SMALL, config, 1024).values()) + memory.LIBRARIES
        assert need <= fit.MARGIN * free


def test_prompts_at_a_time_fit_too():
    def prompts(free: float, device: str = "cpu") -> int:
        return fit.fit_batch_size(SMALL, GenerateConfig(max_new_tokens=512), 512, device, free)

    assert [prompts(free * GB) for free in (200, 13, 4, 0.1)] == [128, 128, 32, 1]
    assert prompts(100 * GB, "cuda") == 512


def test_scoring_needs_less_memory_than_training():
    assert fit.fit_scoring(SMALL, 1024, "cpu", 6 * GB) == 16384
    assert fit.fit_scoring(SMALL, 1024, "cpu", 1 * GB) == 512


def test_a_users_numbers_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(fit, "free_memory", lambda _device: (int(13 * GB), "there"))
    texts = Texts(prompts=100, held_out=10, prompt_tokens=200, response_tokens=300, longest_prompt=512, longest=1024)
    own = resolve("smollm2-135m", sets=["train.micro_batch_tokens=999", "generate.batch_size=3"])
    assert fit.fit_run(own, SMALL, texts, "cpu") == own
    chosen = fit.fit_run(resolve("smollm2-135m"), SMALL, texts, "cpu")
    assert (chosen.train.micro_batch_tokens, chosen.generate.batch_size) == (4096, 128)
    ranks = fit.fit_run(resolve("smollm2-135m", sets=["train.speed.ranks=2"]), SMALL, texts, "cpu")
    assert ranks.train.micro_batch_tokens == 2048


def test_the_shape_of_a_version_counts_its_adapter(tiny_model):
    from spin_core.config.model import ModelConfig
    from spin_core.config.train import LoraConfig

    plain = fit._shape_of(tiny_model, ModelConfig())
    adapted = fit._shape_of(tiny_model, ModelConfig(), LoraConfig(rank=2))
    assert plain.adapter == 0 < adapted.adapter < plain.parameters
    assert dataclasses.replace(adapted, adapter=0) == plain
