"""Estimated time: what it grows and falls with."""

import dataclasses

import pytest

from spin_core.config.resolve import resolve
from spin_core.preflight.check import check_run
from spin_core.preflight.sizes import Shape, Texts
from spin_core.preflight.times import timing
from spin_core.preflight.times.timing import Speed
from tests.support.findings import texts_of

SHAPE = Shape(
    parameters=1000, layers=2, hidden=8, intermediate=16, query_width=8, key_width=4, vocabulary=50, itemsize=4
)
TEXTS = Texts(prompts=100, held_out=10, prompt_tokens=20, response_tokens=30, longest_prompt=40, longest=80)


def test_time_grows_with_epochs_and_model_and_falls_with_speed():
    speed = Speed(batch_flops=1e9, row_flops=1e8, bandwidth=1e9, start=1e-6)
    faster = Speed(batch_flops=1e10, row_flops=1e9, bandwidth=1e10, start=1e-7)
    config = resolve("demo", sets=["train.epochs=[1, 2]", "pairs.mix_previous=false"])
    first, second = (timing.iteration_seconds(SHAPE, TEXTS, config, t, speed) for t in range(2))
    assert second["training"] == pytest.approx(2 * first["training"])
    assert first["training"] == pytest.approx(
        10 * timing.iteration_seconds(SHAPE, TEXTS, config, 0, faster)["training"]
    )
    larger = Shape(**{**vars(SHAPE), "parameters": 10**7})
    assert timing.iteration_seconds(larger, TEXTS, config, 0, speed)["scoring"] > 10 * first["scoring"]
    assert timing.other_seconds(SHAPE, TEXTS, config, speed) > 0


def test_a_frontier_of_texts_answers_the_held_out_prompts_at_each_temperature():
    def seconds(*sets: str) -> float:
        speed = Speed(batch_flops=1e9, row_flops=1e6, bandwidth=1e12, start=0)
        return timing.iteration_seconds(SHAPE, TEXTS, resolve("demo", sets=sets), 0, speed)["evaluating"]

    swept = "evaluate.frontier=[0.3, 0.5, 0.7]"
    plain, once = seconds("evaluate.frontier=[]"), seconds("evaluate.exact=false", swept)
    assert once == pytest.approx(4 * plain, rel=0.1)
    assert seconds(swept) == plain, "exact distances take one pass of the network for all temperatures"


def test_short_sequences_wait_for_attention():
    speed = Speed(batch_flops=1e9, row_flops=1e8, bandwidth=1e9, start=1e-6)
    slower = Speed(batch_flops=1e9, row_flops=1e8, bandwidth=1e9, start=1e-6, attention=1e-6)
    config = resolve("demo", sets=["train.epochs=1", "prompts.sample=100"])
    without, with_attention = (
        timing.iteration_seconds(SHAPE, TEXTS, config, 0, each)["training"] for each in (speed, slower)
    )
    tokens, passes = 100 * (20 + 2 * 30), 3
    assert with_attention - without == pytest.approx(tokens * SHAPE.layers * 1e-6 * passes), "by hand"


NO_CONTROLS = ("controls.sft_continued=false", "controls.temperatures=[]", "evaluate.frontier=[]")


def phases_outside(*sets: str) -> float:
    """The time outside the iterations in starts of phases, on a device that computes in no time."""
    fast = Speed(batch_flops=1e30, row_flops=1e30, bandwidth=1e30, start=0.0)
    config = resolve("demo", sets=[*NO_CONTROLS, *sets])
    seconds = timing.other_seconds(SHAPE, dataclasses.replace(TEXTS, held_out=0), config, fast)
    return seconds / timing.START_SECONDS


def test_every_phase_outside_the_iterations_is_started():
    base, prompts, sft, score, train = 1, 1, 1, 1, 1
    assert phases_outside() == base + prompts + sft + score
    assert phases_outside("model.path=mine") == base + prompts + score
    assert phases_outside("evaluate.frontier=[0.3, 0.5, 0.7]") == base + prompts + sft + 2
    assert phases_outside("controls.temperatures=[0.3, 0.7]") == base + prompts + sft + 3 * score
    fine_tuned = ("controls.sft_continued=true", "controls.sft_learning_rate=[0.1, 0.2]")
    assert phases_outside(*fine_tuned) == base + prompts + sft + score + 2 * (train + score)
    dpo = ("controls.dpo={source: {path: demo}}", "controls.dpo_after=true")
    preferences, reference = 1, 1
    assert phases_outside(*dpo) == base + prompts + sft + score + 2 * (preferences + reference + train + score)


def test_phases_of_an_iteration_are_counted_with_their_suites():
    speed = Speed(batch_flops=1e9, row_flops=1e8, bandwidth=1e9, start=1e-6)
    for sets, phases in ((["evaluate.frontier=[]"], 5), ([], 6), (["evaluate.suites=[big-bench-quick]"], 7)):
        seconds = timing.iteration_seconds(SHAPE, TEXTS, resolve("demo", sets=sets), 0, speed)["starting phases"]
        assert seconds == phases * timing.START_SECONDS


def test_ranks_with_a_device_each_share_the_scoring_of_one_node():
    def seconds(own_device: bool, *sets: str) -> float:
        speed = Speed(batch_flops=1e9, row_flops=1e8, bandwidth=1e9, start=1e-6, own_device=own_device)
        return timing.iteration_seconds(SHAPE, TEXTS, resolve("demo", sets=sets), 0, speed)["scoring"]

    ranks = ("train.speed.ranks=4", "train.speed.nodes=2", "train.speed.rendezvous=host:1")
    assert seconds(True, *ranks) == pytest.approx(seconds(True) / 4)
    assert seconds(False, *ranks) == pytest.approx(seconds(False))


@pytest.mark.parametrize(
    ("suites", "uncounted"),
    [
        ("[]", None),
        ("[mt-bench-quick]", "; MT-Bench not counted;"),
        ("[instruct]", "; benchmarks not counted;"),
        ("[mt-bench, instruct]", "; benchmarks and MT-Bench not counted;"),
    ],
)
def test_the_estimated_time_lists_what_it_leaves_out(configured, tmp_path, suites, uncounted):
    (reason,) = texts_of(check_run(configured(f"evaluate.suites={suites}", *NO_JUDGE), tmp_path), "time")
    assert uncounted in reason if uncounted else "not counted" not in reason


NO_JUDGE = ("evaluate.judge.base_url=http://127.0.0.1:9/v1", "evaluate.judge.speed.retries=1")
"""A judge that does not run, which is another finding."""
