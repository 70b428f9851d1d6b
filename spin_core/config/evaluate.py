"""Settings of evaluation and of the gate that reads it."""

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
    """Benchmarks run by lm-eval: how suites of them are run, and which single tasks are beside the suites."""

    tasks: tuple[str, ...] = ()
    """Tasks by lm-eval's names (`arc_challenge`, `hellaswag`, …), beside those of `evaluate.suites`."""

    local_data: Folder | None = None
    """A folder with the tasks' rows as JSONL; None fetches them from the hub."""

    limit: PositiveInt | None = None
    """A seeded subset of so many items a task; None takes all, or what a quick suite says."""

    num_fewshot: int | None = None
    """Examples in the prompts of `tasks`; None is each task's own number. Suites have theirs."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What computes. vLLM has an environment of its own, which `generate.vllm` describes."""

    batch_size: PositiveInt | Literal["auto"] = 16
    """Items a forward pass; `auto` finds the largest that fits."""

    apply_chat_template: bool | None = None
    """Wrap each item in the model's chat template. None: those of `instruct` where the model has one, and no others, as
    the paper's suites are asked."""


class MtBenchConfig(Frozen):
    """MT-Bench: 80 questions of two turns each, answered by the model and judged by another."""

    data: Folder | None = None
    """A folder with `question.jsonl` and `reference_answer_gpt-4.jsonl`, and `judge_prompts.jsonl` where the original
    prompts of the judge are wanted; None fetches the questions from the hub."""

    max_new_tokens: PositiveInt = 1024
    """Longest answer a turn."""

    pairwise: tuple[Literal["previous", "base", "human"], ...] = ()
    """Whom a version is also compared with, answer by answer: the version that it was trained from, θ_0, or the human
    responses to held-out prompts."""

    pairwise_prompts: PositiveInt = 80
    """How many held-out prompts `human` compares."""


class JudgeSpeedConfig(Frozen):
    """How the judge is asked. Nothing here changes what it says."""

    parallel: PositiveInt = 8
    """Requests in flight at a time."""

    retries: PositiveInt = 8
    """Attempts at one verdict, with growing pauses between them, before the judge counts as down. A wait that a rate
    limit asks for is none."""

    timeout_seconds: PositiveFloat = 120.0
    """Longest wait for one verdict."""


JUDGE_URL = re.compile(r"(https?://[^\s/@?#\\]+(/[^\s@?#\\]*)?)?")
"""Neither a user nor a query: a password or a key in them would stand in records."""


def check_judge_url(url: str) -> str:
    """The address of a judge. The error leaves out what was given, since that may be a secret."""
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
    """The endpoint, as `http://127.0.0.1:8000/v1`; empty is OpenAI's own."""

    model: str = "gpt-4"
    """Its name there."""

    api_key_env: Execution[Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]] = "OPENAI_API_KEY"
    """The environment variable that holds the key, which is sent to that endpoint. The key itself stands in no
    configuration and no record. An endpoint of your own may want none."""

    temperature: NonNegativeFloat | None = 0.0
    """How it samples its verdicts; None leaves that to the endpoint, as models that reason want it."""

    max_tokens: PositiveInt | None = 2048
    """Longest verdict, with what is reasoned before it; None leaves that to the endpoint."""

    extra_body: dict[str, Any] = {}
    """Further fields of each request, by the endpoint's own names, as `{"reasoning_effort": "low"}`."""

    speed: Execution[JudgeSpeedConfig] = JudgeSpeedConfig()
    """How it is asked."""


class EvaluateSpeedConfig(Frozen):
    """Where versions are scored. Nothing here changes a score, but for rounding where devices or threads differ."""

    ray: RayConfig | None = None
    """Run a version's suites on a Ray cluster (extra `ray`), each as one of its workers; None runs them on this
    machine, one after the other."""


class EvaluateConfig(Frozen):
    """How every model version is scored."""

    suites: tuple[SuiteName, ...] = ()
    """Benchmarks as the paper ran them. A `-quick` one takes a seeded subset of the items."""

    lm_eval: LmEvalConfig = LmEvalConfig()
    """How lm-eval runs, and single tasks of it."""

    mt_bench: MtBenchConfig = MtBenchConfig()
    """The suite `mt-bench`."""

    judge: JudgeConfig = JudgeConfig()
    """Who judges there."""

    self_play: bool = True
    """Diagnostics of the game on held-out prompts."""

    exact: bool = False
    """Exact distance to p_data, for sources whose distribution is known (the demo's)."""

    temperature: PositiveFloat = 1.0
    """The temperature at which versions answer here: the one at which the model will be used."""

    main_metric: str = "heldout_nll"
    """The score that the gate and the leaderboard's plot look at: a task's, or a suite's name for its average."""

    headline: tuple[str, ...] = ("heldout_nll", "reward_accuracy", "length_classifier", "repeated_trigrams")
    """The scores that the terminal's leaderboard shows beside the main metric and the benchmarks."""

    batch_size: PositiveInt = 64
    """Rows a forward pass."""

    speed: Execution[EvaluateSpeedConfig] = EvaluateSpeedConfig()
    """Where it runs."""


class GateConfig(Frozen):
    """Whether θ_{t+1} becomes the next opponent."""

    rule: Literal["always", "stop", "best"] = "stop"
    """When the gate's metric falls: promote the player always, stop, or play on from the best version so far."""

    metric: str = ""
    """The score it looks at: a task's, or a suite's name for its average. Empty: `evaluate.main_metric`."""

    tolerance: NonNegativeFloat = 2.0
    """How many standard errors a fall may measure before it counts."""
