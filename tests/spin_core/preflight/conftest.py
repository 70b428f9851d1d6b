"""A small run to check."""

import json

import pytest

from spin_core.config.resolve import resolve
from spin_core.preflight.times import measure


@pytest.fixture(autouse=True)
def quick_measurement(monkeypatch):
    """The device is measured in milliseconds: no test here depends on its speed."""
    monkeypatch.setattr(measure, "TRIED_SECONDS", 0.005)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A JSONL file of 60 rows, of which one is empty, one is a repetition, and one has a prompt of 100 tokens."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    made = [{"prompt": f"question {i:02d}?", "response": "answer " * (1 + i % 3) + f"{i:02d}."} for i in range(57)]
    made += [{"prompt": "empty?", "response": " "}, made[0], {"prompt": "x" * 99, "response": "long"}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    return file


@pytest.fixture
def configured(tiny_model, rows):
    """A small run's configuration; settings may be changed."""

    def configure(*sets):
        own = (f"model.path={tiny_model}", f"prompts.source.path={rows}", "prompts.held_out=8", "prompts.sample=null")
        sizes = ("prompts.max_prompt_tokens=50", "generate.max_new_tokens=24", "train.batch_size=4")
        off = ("evaluate.exact=false", "evaluate.main_metric=heldout_nll", "controls={sft_continued: false}")
        return resolve("demo", sets=[*own, *sizes, *off, *sets])

    return configure
