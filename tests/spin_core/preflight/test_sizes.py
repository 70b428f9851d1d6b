"""Sizes of models and texts, and the pairs, steps and tokens that they make."""

import dataclasses

from spin_core.config.resolve import resolve
from spin_core.config.train import TrainConfig
from spin_core.preflight import sizes
from spin_core.preflight.sizes import Shape, Texts

TEXTS = Texts(prompts=100, held_out=10, prompt_tokens=20, response_tokens=30, longest_prompt=40, longest=80)


def test_a_pass_holds_the_budget_a_batch_or_a_pair():
    longest = 100
    assert sizes.tokens_in_a_pass(TrainConfig(micro_batch_tokens=4096, batch_size=64), longest) == 4096
    assert sizes.tokens_in_a_pass(TrainConfig(micro_batch_tokens=4096, batch_size=4), longest) == 800
    assert sizes.tokens_in_a_pass(TrainConfig(micro_batch_tokens=10, batch_size=4), longest) == 200
    assert sizes.tokens_in_a_pass(TrainConfig(micro_batch_tokens=10, batch_size=4, loss="sft"), longest) == 100


def test_a_shared_prompt_is_counted_once():
    def tokens(**fields) -> float:
        return sizes.tokens_of_item(TEXTS, TrainConfig(**fields))

    assert tokens() == 20 + 2 * 30
    assert tokens(loss="t-spin") == 20 + 3 * 30
    assert tokens(loss="sft") == 20 + 30
    assert tokens(speed={"prefix_sharing": False}) == tokens(speed={"packing": False}) == 2 * (20 + 30)


def test_padding_is_counted_for_rows_that_are_padded_alone():
    padded = dataclasses.replace(TEXTS, padding=1.5)
    assert sizes.tokens_of_item(padded, TrainConfig()) == 20 + 2 * 30
    assert sizes.tokens_of_item(padded, TrainConfig(speed={"prefix_sharing": False})) == 2 * (20 + 30)
    assert sizes.tokens_of_item(padded, TrainConfig(speed={"packing": False})) == 1.5 * 2 * (20 + 30)


def test_pairs_and_steps_grow_where_iterations_are_mixed():
    config = resolve("demo", sets=["pairs.mix_previous=true", "train.batch_size=32", "train.epochs=[1, 2]"])
    assert [sizes.pairs_in(TEXTS, config, t) for t in range(3)] == [100, 200, 200]
    assert [sizes.steps_in(TEXTS, config, t) for t in range(3)] == [4, 14, 14]
    for chosen, pairs in (("all", 300), ("first", 100)):
        config = resolve("demo", sets=["generate.answers=3", f"pairs.answers={chosen}"])
        assert sizes.pairs_in(TEXTS, config, 0) == pairs


def test_shapes_are_read_from_other_families_too():
    from transformers import GPT2Config, LlamaConfig

    llama = LlamaConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, intermediate_size=100)
    assert Shape.of(llama, 1, "bfloat16").key_width == 16
    assert Shape.of(llama, 1, "bfloat16").itemsize == 2
    gpt2 = Shape.of(GPT2Config(n_embd=64, n_head=4, n_layer=3), 1, "float32")
    assert (gpt2.hidden, gpt2.layers, gpt2.intermediate, gpt2.key_width, gpt2.heads) == (64, 3, 256, 64, 4)


def test_a_model_without_attention_has_sizes_too():
    from transformers import MambaConfig

    mamba = Shape.of(MambaConfig(hidden_size=64, num_hidden_layers=3), 1, "float32")
    assert (mamba.hidden, mamba.layers, mamba.query_width) == (64, 3, 64)
