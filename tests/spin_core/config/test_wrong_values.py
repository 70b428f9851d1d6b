"""Values that a setting cannot have are reported in plain words, with what to give instead."""

import pytest

from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError

LIST, BRACES = "give a list, such as [a, b]", "give settings in braces, such as {name: value}"

WRONG = {
    "train.beta=[]": "train.beta cannot be []: give at least one value",
    "train.beta=abc": "train.beta cannot be 'abc': give a number",
    "train.beta=[0.1, x]": "train.beta cannot be 'x': give a number",
    "train.beta=": "train.beta cannot be null: give a number",
    "train.beta={a: 1}": "train.beta cannot be {a: 1}: give a number",
    "train.epochs=[1.5]": "train.epochs cannot be 1.5: give a whole number",
    "train.epochs=[true, 0]": "train.epochs cannot be 0: give a number greater than 0",
    "train.learning_rate=.inf": "train.learning_rate cannot be inf: give a finite number",
    "train.loss=dpo": "train.loss cannot be 'dpo': "
    "give one of logistic, hinge, exponential, correlation, t-spin, space, sft",
    "train=3": f"train cannot be 3: {BRACES}",
    "prompts.columns=[a, {b: null}]": f"prompts.columns cannot be ['a', {{b: null}}]: {BRACES}",
    "prompts.sources=[3]": "prompts.sources cannot have 3 in it: give paths, or {path: …}",
    "metrics.sinks=wandb": f"metrics.sinks cannot be 'wandb': {LIST}",
    "evaluate.frontier=0.5": f"evaluate.frontier cannot be 0.5: {LIST}",
    "controls.dpo={}": "controls.dpo.source is missing: give it a value",
    "generate.speed.workers=-1": "generate.speed.workers cannot be -1: give 0 or more",
    "generate.top_p=2": "generate.top_p cannot be 2: give 1 or less",
    "pairs.mix_previous=maybe": "pairs.mix_previous cannot be 'maybe': give true or false",
    "model.path=3": "model.path cannot be 3: give a text",
}


@pytest.mark.parametrize(("setting", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_value_is_reported_with_what_to_give_instead(setting, message):
    with pytest.raises(ConfigError) as raised:
        resolve("demo", sets=[setting])
    assert str(raised.value) == message
