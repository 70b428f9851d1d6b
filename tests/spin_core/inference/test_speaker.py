"""A version that talks: its answers are those of the engine, in pieces, whatever ends them."""

import pytest

from spin_core.config.resolve import resolve
from spin_core.config.run import RunConfig
from spin_core.data.templates.responses import decode_responses
from spin_core.inference.engine import Request
from spin_core.inference.speaker import Speaker
from spin_core.store.records import ModelVersion

TURNS = [{"role": "user", "content": "tell me a story"}]


def config(*sets: str) -> RunConfig:
    return resolve("demo", sets=["chat.template=plain", "generate.max_new_tokens=40", "model.device=cpu", *sets])


@pytest.fixture
def version(tiny_model) -> ModelVersion:
    return ModelVersion(path=tiny_model, digest="0" * 64, t=0, parent=None)


@pytest.mark.parametrize("sets", [(), ("generate.repetition_penalty=1.3",), ("generate.stop_strings=['e']",)])
def test_the_pieces_of_an_answer_are_the_engines_answer(version, sets):
    speaker = Speaker(version, config(*sets))
    prompt_ids = speaker.renderer.prompt_ids(TURNS)
    for seed in range(5):
        ((_, answer),) = speaker.engine.answer([Request(prompt_ids, seed)])
        *_, streamed = speaker.engine.stream(Request(prompt_ids, seed))
        assert streamed == answer.response_ids
        pieces = list(speaker.answer(TURNS, seed))
        text = decode_responses(speaker.renderer.tokenizer, [prompt_ids], [streamed], speaker.renderer.ends)[0]
        assert "".join(pieces) == text
        assert len(pieces) > 1 or len(text) < 3


def test_the_beginning_of_a_stop_string_is_not_shown_before_it_is_known_to_be_none(version):
    speaker = Speaker(version, config("generate.stop_strings=['User:']"))
    assert [speaker._unsure(text) for text in ("a", "a U", "a Use", "a User", "User.", "a\ufffd")] == [0, 1, 3, 4, 0, 1]


def test_the_temperature_changes_and_zero_is_greedy(version):
    speaker = Speaker(version, config())
    speaker.temperature = 0.0
    assert len({"".join(speaker.answer(TURNS, seed)) for seed in range(4)}) == 1
    speaker.temperature = 1.0
    assert len({"".join(speaker.answer(TURNS, seed)) for seed in range(4)}) > 1


def test_the_oldest_questions_leave_a_conversation_that_is_too_long(version):
    speaker = Speaker(version, config())
    system = {"role": "system", "content": "be brief"}
    turns = [system]
    for number in range(40):
        turns += [
            {"role": "user", "content": f"question {number} " + "x" * 30},
            {"role": "assistant", "content": "y" * 10},
        ]
    turns.append({"role": "user", "content": "the last one"})
    prompt = speaker.renderer.tokenizer.decode(speaker._prompt_ids(list(turns)))
    assert "be brief" in prompt
    assert "question 0 " not in prompt
    assert "question 39 " in prompt
    assert prompt.rstrip().endswith("the last one")
    assert len(speaker._prompt_ids(list(turns))) + 40 <= speaker.engine.context
