"""The demo's source: its closed form, its samples, its division of prompts, its tokenizer."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from spin_core.data import demo
from spin_core.errors import DataError

ALL_PROMPTS = [f"{n}=" for n in range(demo.FIRST, demo.LAST + 1)]


def test_the_probabilities_of_347_are_those_of_the_table() -> None:
    assert demo.support("347=") == pytest.approx(
        {"300+47": 0.30, "340+7": 0.25, "173+174": 0.15, "250+97": 0.10, "200+147": 0.20}
    )


def test_habits_without_remaining_answers_are_left_out_and_the_rest_is_renormalised() -> None:
    # Of 400, hundreds and tens take all; half and two agree.
    assert demo.support("400=") == pytest.approx(
        {"200+200": 0.25 / 0.45, "350+50": 0.10 / 0.45, "300+100": 0.10 / 0.45}
    )


def test_the_probabilities_of_every_prompt_are_positive_and_sum_to_one() -> None:
    for prompt in ALL_PROMPTS:
        right = demo.support(prompt)
        assert 2 <= len(right) <= 6, prompt
        assert min(right.values()) > 0, prompt
        assert sum(right.values()) == pytest.approx(1.0, abs=1e-12), prompt


def test_preferences_are_of_a_right_response_over_a_wrong_one() -> None:
    triples = demo.preferences(2)
    assert Counter(prompt for prompt, _, _ in triples) == dict.fromkeys(ALL_PROMPTS, 2)
    for prompt, chosen, rejected in triples:
        assert chosen in demo.support(prompt)
        assert rejected not in demo.support(prompt)
        assert set(rejected) <= set(demo.CHARACTERS)
        assert len(rejected) <= demo.MAX_RESPONSE_CHARS
    assert triples == demo.preferences(2)


def test_every_right_response_adds_up_and_fits_the_length_that_the_module_names() -> None:
    longest = 0
    for prompt in ALL_PROMPTS:
        for response in demo.support(prompt):
            a, b = response.split("+")
            assert f"{int(a) + int(b)}=" == prompt
            assert min(int(a), int(b)) > 0
            assert response == f"{int(a)}+{int(b)}"
            longest = max(longest, len(response))
    assert longest == demo.MAX_RESPONSE_CHARS


def test_samples_follow_the_closed_form() -> None:
    draws = 20_000
    for prompt in ("347=", "400=", "999=", "205="):
        rng = Random(7)
        seen = Counter(demo.sample(prompt, rng) for _ in range(draws))
        right = demo.support(prompt)
        assert set(seen) == set(right)
        chi_square = sum((seen[y] - draws * p) ** 2 / (draws * p) for y, p in right.items())
        assert chi_square < 20.5, (prompt, chi_square)  # the .999 quantile with five degrees of freedom, the most here


def test_training_and_held_out_prompts_are_disjoint_and_together_all() -> None:
    training, held = demo.prompts(300)
    assert len(held) == 300
    assert not set(training) & set(held)
    assert sorted(training + held) == ALL_PROMPTS
    assert {prompt for prompt, _ in demo.demonstrations(2000, seed=0, held_out=300)} == set(training)
    assert [prompt for prompt, _ in demo.held_out_demonstrations(seed=0, held_out=300)] == held


def test_a_smaller_held_out_list_is_the_beginning_of_a_larger_one() -> None:
    assert demo.prompts(300)[1][:100] == demo.prompts(100)[1]


def test_every_demonstration_is_a_right_response() -> None:
    for prompt, response in demo.demonstrations(1500, 3, 300) + demo.held_out_demonstrations(3, 300):
        assert response in demo.support(prompt)


def test_prompts_are_used_equally_often_up_to_one() -> None:
    counts = Counter(prompt for prompt, _ in demo.demonstrations(1700, seed=0, held_out=300))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_seed_gives_the_same_demonstrations_again_and_another_seed_gives_others() -> None:
    assert demo.demonstrations(600, 1, 300) == demo.demonstrations(600, 1, 300)
    assert demo.demonstrations(600, 1, 300) != demo.demonstrations(600, 2, 300)
    assert demo.demonstrations(600, 1, 300)[:100] == demo.demonstrations(100, 1, 300)
    assert demo.held_out_demonstrations(1, 300) == demo.held_out_demonstrations(1, 300)
    assert demo.held_out_demonstrations(1, 300) != demo.held_out_demonstrations(2, 300)


@pytest.mark.parametrize("prompt", ["347", "200=", "1000=", "=", "", "34a=", " 347=", "-347=", "0347=", "٣٤٧="])
def test_a_prompt_of_another_template_is_rejected_with_the_fix(prompt: str) -> None:
    with pytest.raises(DataError, match="write a number from 201 to 999"):
        demo.support(prompt)


@pytest.mark.parametrize("held_out", [-1, 0, 799, 5000])
def test_a_division_that_leaves_a_side_empty_is_rejected(held_out: int) -> None:
    with pytest.raises(DataError, match="hold out between 1 and 798"):
        demo.prompts(held_out)


def test_the_tokenizer_gives_every_text_back_one_token_a_character(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    built = demo.build_tokenizer()
    built.save_pretrained(tmp_path)
    for tokenizer in (built, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == 4 + len(demo.CHARACTERS)
        assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
        for prompt in ALL_PROMPTS[::37]:
            for text in (prompt, *demo.support(prompt)):
                ids = tokenizer.encode(text)
                assert len(ids) == len(text)
                assert tokenizer.decode(ids) == text


def test_special_tokens_are_one_token_each_and_can_be_skipped() -> None:
    tokenizer = demo.build_tokenizer()
    ids = tokenizer.encode(f"{demo.BOS}347=300+47{demo.EOS}{demo.PAD}")
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-2:] == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "347=300+47"


def test_a_character_outside_the_alphabet_is_unknown() -> None:
    tokenizer = demo.build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("1x2\n")) == ["1", "<unk>", "2", "<unk>"]
    assert tokenizer.unk_token_id not in tokenizer.encode(demo.CHARACTERS)


def test_importing_the_module_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, spin_core.data.demo; assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
