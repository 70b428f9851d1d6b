"""Settings of evaluation and of the gate that uses its scores."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, WithJsonSchema

from spin_core.config.base import Execution, Folder, Frozen, NonNegativeFloat
from spin_core.config.generate import RayConfig

SuiteName = Literal[
    "open-llm-leaderboard",
    "open-llm-leaderboard-quick",
    "big-bench",
    "big-bench-quick",
    "bbh",
    "bbh-quick",
    "instruct",
    "instruct-quick",
    "mt-bench",
    "mt-bench-quick",
]


class LmEvalConfig(Frozen):
    """Benchmarks run by lm-eval: how suites run, and which single tasks run in addition."""

    tasks: tuple[str, ...] = ()
    """Tasks by lm-eval's names (`arc_challenge`, `hellaswag`, …), in addition to those of `evaluate.suites`."""

    local_data: Folder | None = None
    """A folder with the tasks' rows as JSONL; None fetches them from the hub."""

    limit: PositiveInt | None = None
    """Score a seeded subset of this many items of each task; None takes all, or the number that a quick suite sets."""

    num_fewshot: int | None = None
    """Examples in the prompts of `tasks`; None takes each task's default. Suites set their own numbers."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs the model. vLLM has its own environment, which `generate.vllm` describes."""

    batch_size: PositiveInt | Literal["auto"] = 16
    """Items in a forward pass; `auto` finds the largest number that fits."""

    apply_chat_template: bool | None = None
    """Wrap each item in the model's chat template. None: only items of `instruct`, if the model has a template; the
    paper's suites are run without it."""


class MtBenchConfig(Frozen):
    """MT-Bench: 80 questions of two turns each, answered by the model and judged by another."""

    data: Folder | None = None
    """A folder with `question.jsonl` and `reference_answer_gpt-4.jsonl`, and `judge_prompts.jsonl` to use the
    original prompts of the judge; None fetches the questions from the hub."""

    max_new_tokens: PositiveInt = 1024
    """Longest answer in one turn, in tokens."""

    pairwise: tuple[Literal["previous", "base", "human"], ...] = ()
    """What a version is also compared with, answer by answer: the version that it was trained from, θ_0, or the human
    responses to held-out prompts."""

    pairwise_prompts: PositiveInt = 80
    """How many held-out prompts `human` compares."""


class JudgeSpeedConfig(Frozen):
    """How requests are sent to the judge. Nothing here changes its verdicts."""

    parallel: PositiveInt = 8
    """Requests that are open at the same time, at most."""

    retries: PositiveInt = 8
    """Attempts at one verdict, with growing pauses between them, before the judge counts as unavailable.
    A wait because of a rate limit is not counted."""

    timeout_seconds: PositiveFloat = 120.0
    """Longest wait for one verdict."""


JUDGE_URL = re.compile(r"(https?://[^\s/@?#\\]+(/[^\s@?#\\]*)?)?")
"""Neither a user nor a query is allowed: records would contain a password or a key in them."""


def check_judge_url(url: str) -> str:
    """Return the address of a judge if it is valid. The error does not show the value, because it may hold a secret."""
    if not JUDGE_URL.fullmatch(url):
        raise ValueError(
            "evaluate.judge.base_url must be like http://127.0.0.1:8000/v1, without users, passwords or keys: give the "
            "key in the environment variable that evaluate.judge.api_key_env names"
        )
    return url


JudgeUrl = Annotated[
    str,
    AfterValidator(check_judge_url),
    WithJsonSchema({"type": "string", "pattern": f"^{JUDGE_URL.pattern}$"}),
]


class JudgeConfig(Frozen):
    """The model that judges, behind an endpoint that speaks OpenAI's protocol."""

    base_url: JudgeUrl = ""
    """The address of the endpoint, like `http://127.0.0.1:8000/v1`; empty is OpenAI's."""

    model: str = "gpt-4"
    """The judge's name at the endpoint."""

    api_key_env: Execution[Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]] = "OPENAI_API_KEY"
    """The environment variable that holds the key, which is sent to that endpoint. The key itself is never written to a
    configuration or a record. Your own endpoint may not need a key."""

    temperature: NonNegativeFloat | None = 0.0
    """Sampling temperature of the verdicts; None leaves it to the endpoint, which reasoning models may require."""

    max_tokens: PositiveInt | None = 2048
    """Longest verdict in tokens, including the reasoning before it; None leaves it to the endpoint."""

    extra_body: dict[str, Any] = {}
    """Further fields of each request, with the endpoint's names, like `{"reasoning_effort": "low"}`."""

    speed: Execution[JudgeSpeedConfig] = JudgeSpeedConfig()
    """How requests are sent."""


class EvaluateSpeedConfig(Frozen):
    """Where versions are scored. Nothing here changes a score, except for rounding if devices or threads differ."""

    ray: RayConfig | None = None
    """Run a version's suites on a Ray cluster (extra `ray`), each as one of its workers; None runs them on this
    machine, one after another."""


FEWEST_TEMPERATURES = 3
"""Fewest temperatures of a curve."""


def check_temperatures(temperatures: tuple[float, ...]) -> tuple[float, ...]:
    """Return a sweep's temperatures in rising order, each once."""
    chosen = tuple(sorted(set(temperatures)))
    if 0 < len(chosen) < FEWEST_TEMPERATURES:
        raise ValueError(
            f"evaluate.frontier has {len(chosen)} temperatures, which is not a curve: give at least "
            f"{FEWEST_TEMPERATURES}, like [0.3, 0.5, 0.7, 0.9, 1.1], or [] to turn it off"
        )
    return chosen


Temperatures = Annotated[tuple[PositiveFloat, ...], AfterValidator(check_temperatures)]


class EvaluateConfig(Frozen):
    """How every model version is scored."""

    suites: tuple[SuiteName, ...] = ()
    """Benchmarks as the paper ran them. Suites named `-quick` take a seeded subset of the items."""

    lm_eval: LmEvalConfig = LmEvalConfig()
    """How lm-eval runs, and which single tasks run in addition."""

    mt_bench: MtBenchConfig = MtBenchConfig()
    """The suite `mt-bench`."""

    judge: JudgeConfig = JudgeConfig()
    """The judge of `mt-bench`."""

    self_play: bool = True
    """Measure the player against its opponent on held-out prompts: rewards, likelihoods, lengths and repetition."""

    exact: bool = False
    """Exact distance to p_data, for sources whose distribution is known (the demo's)."""

    temperature: PositiveFloat = 1.0
    """The temperature at which versions answer in evaluation. Choose the one at which the model will be used."""

    # A suite of its own: the scores of the other suites, whose jobs hold this class, do not depend on it.
    frontier: Execution[Temperatures] = ()
    """Measure every version and control at each of these temperatures too, and compare versions with θ_0's curve, as in
    `[0.3, 0.5, 0.7, 0.9, 1.1]`; empty turns it off. At least three; `evaluate.temperature` is added. The axes are total
    variation and invalid mass with `exact`, else those of the next two settings."""

    frontier_diversity: Execution[Literal["distinct_2", "self_bleu"]] = "distinct_2"
    """The axis of diversity for text: distinct word pairs, or BLEU of each answer against the others."""

    frontier_quality: Execution[Literal["faulty_share", "text_classifier", "reference_nll"]] = "faulty_share"
    """The axis of quality for text, lower is better: the share of answers that loop, are cut, are empty or repeat
    another one; the accuracy of telling answers from human responses; or their NLL under `frontier_reference`."""

    frontier_reference: Execution[Folder | None] = None
    """The folder of a model that scores the answers for `reference_nll`. Choose one that is not θ_0, whose likelihood
    favours its own lower temperatures."""

    main_metric: str = "heldout_nll"
    """The score that the gate and the leaderboard's plot use: the name of a task, or of a suite for its average."""

    headline: tuple[str, ...] = ("heldout_nll", "reward_accuracy", "length_classifier", "repeated_trigrams")
    """The scores that the leaderboard in the terminal shows in addition to the main metric and the benchmarks."""

    batch_size: PositiveInt = 64
    """Rows in a forward pass."""

    speed: Execution[EvaluateSpeedConfig] = EvaluateSpeedConfig()
    """Where evaluation runs."""


class GateConfig(Frozen):
    """Whether θ_{t+1} becomes the next opponent."""

    rule: Literal["always", "stop", "best"] = "stop"
    """What happens when the gate's metric gets worse. `always`: promote the player all the same; `stop`: end the run;
    `best`: continue from the best version so far."""

    metric: str = ""
    """The score that decides: the name of a task, or of a suite for its average. Empty: `evaluate.main_metric`."""

    tolerance: NonNegativeFloat = 2.0
    """By how many standard errors the metric may get worse before it counts."""
