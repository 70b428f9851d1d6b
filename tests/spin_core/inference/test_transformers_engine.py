import math
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from spin_core.errors import DataError, ModelError
from spin_core.inference.engine import Answer, Request
from spin_core.inference.sampling import Sampling
from spin_core.inference.transformers_engine import TransformersEngine, ends_in_stop_string
from tests.support.models.engines import AS_IS, GREEDY, VOCABULARY, answers, gpt2, llama, mistral, requests


class Counting:
    """A model that notes the rows and columns of each pass."""

    def __init__(self, model):
        self.shapes = []
        self.handle = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _module, _args, kwargs):
        self.shapes.append(tuple(kwargs["input_ids"].shape))


@pytest.mark.parametrize("make", [llama, gpt2, mistral])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_lowest_temperature_answers_as_greedy_generate(make, batch_size):
    model = make()
    to_answer = requests(10)
    stops = [3, 4]
    for request, answer in zip(
        to_answer, answers(TransformersEngine(model, stops, GREEDY, batch_size), to_answer), strict=True
    ):
        with torch.inference_mode():
            ids = torch.tensor([request.prompt_ids])
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=stops,
                pad_token_id=0,
            )  # fmt: skip
        assert answer.response_ids == whole[0, ids.shape[1] :].tolist()
        assert answer.finish_reason == ("stop" if answer.response_ids[-1] in stops else "length")


@pytest.mark.parametrize("make", [llama, gpt2, mistral])
def test_a_batch_answers_as_single_requests_do(make):
    model = make()
    to_answer = requests(40)
    together = answers(TransformersEngine(model, [3], AS_IS, 8), to_answer)
    alone = [answers(TransformersEngine(model, [3], AS_IS, 1), [request])[0] for request in to_answer]
    assert together == alone
    assert len({answer.finish_reason for answer in together}) == 2


def test_the_same_requests_give_the_same_answers_and_other_seeds_others():
    engine = TransformersEngine(llama(), [3], AS_IS, 4)
    to_answer = requests(12)
    assert answers(engine, to_answer) == answers(engine, to_answer)
    other = [Request(request.prompt_ids, request.seed + 100) for request in to_answer]
    assert answers(engine, to_answer) != answers(engine, other)


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.3, 0.8, 9)])
def test_first_tokens_are_spread_as_the_models_softmax(temperature, top_p, top_k):
    model, prompt, count = llama(), [5, 9, 11], 3000
    with torch.inference_mode():
        probs = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double() / temperature, -1).tolist()
    ranked = sorted(range(VOCABULARY), key=lambda token: -probs[token])[: top_k or VOCABULARY]
    kept, held, whole = [], 0.0, sum(probs[token] for token in ranked)
    for token in ranked:
        if held < top_p * whole:
            kept.append(token)
            held += probs[token]
    engine = TransformersEngine(model, [], Sampling(temperature, top_p, top_k, 1), 500)
    drawn = Counter(answer.response_ids[0] for _, answer in engine.answer([Request(prompt, i) for i in range(count)]))
    assert set(drawn) <= set(kept)
    # Cells of fewer than five expected draws are joined into one.
    cells = [(drawn[token], count * probs[token] / held) for token in kept]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5] + ([tuple(map(sum, zip(*rare, strict=True)))] if rare else [])
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells if expected > 0)
    freedom = len(cells) - 1
    assert freedom >= 4
    # A chi-square has mean `freedom` and variance twice that; the seeds are fixed, so this does not flicker.
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_stopped_rows_leave_the_batch_and_waiting_prompts_take_their_place():
    model = llama()
    seen = Counting(model)
    to_answer = requests(40)
    answered = answers(TransformersEngine(model, [3, 4, 5], AS_IS, 8), to_answer)
    lengths = [len(answer.response_ids) for answer in answered]
    assert min(lengths) < 3
    assert max(lengths) == 12
    # Every token is paid for once: the pass that read a prompt drew the first, and no row idled in the batch.
    assert sum(rows for rows, _ in seen.shapes) == sum(lengths)
    assert max(rows for rows, _ in seen.shapes) == 8
    # With batches that wait for their last row, this would take five prefills and 5 x 11 steps or nearly so.
    prefills = [shape for shape in seen.shapes if shape[1] > 1]
    assert len(prefills) > 5
    assert all(rows >= 2 for rows, _ in prefills[:-1])
    assert [width for _, width in prefills] == sorted((width for _, width in prefills), reverse=True)


def test_answers_come_as_they_are_finished():
    order = [i for i, _ in TransformersEngine(llama(), [3, 4, 5], AS_IS, 8).answer(requests(40))]
    assert order != sorted(order)


def cache_of(arguments):
    """The cache among a model's arguments, by its name since transformers 5.24 or before."""
    return arguments["cache"] if "cache" in arguments else arguments["past_key_values"]


def test_the_cache_stays_as_narrow_as_the_rows_it_holds():
    model = llama(context=512)
    widths = []
    model.register_forward_hook(
        lambda _module, _args, kwargs, _out: widths.append(cache_of(kwargs).layers[0].keys.shape[2]),
        with_kwargs=True,
    )
    to_answer = requests(14, longest=20)
    long = Sampling(1.0, 1.0, 0, 90)
    together = answers(TransformersEngine(model, [3], long, 4), to_answer)
    assert max(widths) <= 20 + 90 + 32
    assert sum(len(answer.response_ids) for answer in together) > 300
    assert together == [answers(TransformersEngine(model, [3], long, 1), [request])[0] for request in to_answer]


def test_every_stop_id_ends_an_answer_and_is_its_last_token():
    answered = answers(TransformersEngine(llama(), [7, 8], Sampling(1.0, 1.0, 0, 30), 8), requests(60))
    ends = Counter(answer.response_ids[-1] for answer in answered if answer.finish_reason == "stop")
    assert set(ends) == {7, 8}
    for answer in answered:
        assert not {7, 8} & set(answer.response_ids[:-1])
        assert answer.finish_reason == "stop" or (
            len(answer.response_ids) == 30 and answer.response_ids[-1] not in ends
        )


def test_without_stop_ids_every_answer_is_cut():
    answered = answers(TransformersEngine(llama(), [], AS_IS, 8), requests(9))
    assert {(len(answer.response_ids), answer.finish_reason) for answer in answered} == {(12, "length")}


def test_a_stop_id_as_the_last_token_allowed_counts_as_a_stop():
    model = llama()
    [cut] = answers(TransformersEngine(model, [], AS_IS), requests(1))
    last = cut.response_ids[-1]
    keep = cut.response_ids.index(last) + 1
    [stopped] = answers(TransformersEngine(model, [last], Sampling(1.0, 1.0, 0, keep)), requests(1))
    assert stopped == Answer(cut.response_ids[:keep], "stop")


def test_an_answer_is_cut_where_the_context_ends():
    answered = answers(TransformersEngine(llama(context=16), [], AS_IS), [Request([5] * 10, 0), Request([5] * 2, 1)])
    assert [(len(answer.response_ids), answer.finish_reason) for answer in answered] == [(6, "length"), (12, "length")]


def test_a_prompt_without_room_or_without_tokens_is_rejected():
    engine = TransformersEngine(llama(context=16), [], AS_IS)
    with pytest.raises(DataError, match="16 tokens leaves no room"):
        answers(engine, [Request([5] * 16, 0)])
    with pytest.raises(DataError, match="no tokens"):
        answers(engine, [Request([], 0)])


def test_no_requests_give_no_answers():
    assert list(TransformersEngine(llama(), [], AS_IS).answer([])) == []


def test_a_prompt_in_another_models_tokens_is_rejected():
    with pytest.raises(ModelError, match=f"token {VOCABULARY}, and the model knows tokens 0 to {VOCABULARY - 1}"):
        answers(TransformersEngine(llama(), [], AS_IS), [Request([5, VOCABULARY], 0)])


def test_stop_ids_of_the_settings_are_added_to_those_of_the_chat_format():
    engine = TransformersEngine(llama(), [7], Sampling(1.0, 1.0, 0, 30, stop_ids=(8,)), 8)
    ends = {answer.response_ids[-1] for answer in answers(engine, requests(40)) if answer.finish_reason == "stop"}
    assert ends == {7, 8}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_repetition_penalty_is_that_of_greedy_generate(batch_size):
    model, to_answer = llama(), requests(10)
    cold = Sampling(1e-6, 1.0, 0, 12, repetition_penalty=1.5)
    answered = answers(TransformersEngine(model, [3], cold, batch_size), to_answer)
    for request, answer in zip(to_answer, answered, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([request.prompt_ids])
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=[3],
                pad_token_id=0, repetition_penalty=1.5,
            )  # fmt: skip
        assert answer.response_ids == whole[0, ids.shape[1] :].tolist()
    assert answered != answers(TransformersEngine(model, [3], GREEDY, batch_size), to_answer)


def words_tokenizer():
    """A tokenizer whose tokens are pieces that join: `ab` is `a` and `b`, or one token."""
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefgh", "ab", "cd", " e", "f!", "g\n", "hab", *"ijklm"]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(pieces[:4])
    assert len(pieces) == VOCABULARY
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_stop_string_ends_an_answer_with_the_token_that_completes_it(batch_size):
    tokenizer, strings = words_tokenizer(), ("ba", "d e", "hh")
    engine = TransformersEngine(llama(), [3], Sampling(1.0, 1.0, 0, 60, stop_strings=strings), batch_size, tokenizer)
    counts = Counter()
    for answer in answers(engine, requests(40)):
        whole, before = (
            tokenizer.decode(ids, skip_special_tokens=True) for ids in (answer.response_ids, answer.response_ids[:-1])
        )
        held = [string for string in strings if string in whole]
        assert not any(string in before for string in strings)
        assert (answer.finish_reason == "stop") == bool(held or answer.response_ids[-1] == 3)
        counts.update(held)
    # One of them straddles tokens, and the prompt that ends in half of it completes none.
    assert set(counts) == set(strings)
    [first] = answers(
        TransformersEngine(llama(), [], Sampling(1.0, 1.0, 0, 1, stop_strings=("ba",)), 1, tokenizer), [Request([5], 3)]
    )
    assert first.finish_reason == "length"


def test_a_stop_string_is_searched_in_the_answer_and_not_in_the_prompt():
    tokenizer = words_tokenizer()
    assert ends_in_stop_string(tokenizer, ["ba"], [[5], [4]], [[4, 6], [5, 4]]) == [False, True]
    assert ends_in_stop_string(tokenizer, ["d e"], [[4]], [[*[6] * 40, 13, 14]]) == [True]


def test_a_recurrent_model_is_rejected_in_one_line():
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="recurrent"):
        answers(TransformersEngine(MambaForCausalLM(config), [], AS_IS), requests(1))
