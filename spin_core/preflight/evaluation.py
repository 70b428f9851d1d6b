"""The findings of `spin check` about what scores the versions: benchmarks and MT-Bench's judge."""

from pathlib import Path

from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.evaluation import suites
from spin_core.preflight.findings import Inspection


def inspect_benchmarks(inspection: Inspection, config: RunConfig, scratch: Path) -> None:
    """lm-eval's tasks: their engine, and whether their rows are available."""
    settings = config.evaluate.lm_eval
    tasks = {task.name: task for _, tasks in suites.benchmarks(config.evaluate) for task in tasks}
    if not tasks:
        return
    names = ", ".join(tasks)
    engine = "vLLM" if settings.engine == "vllm" else "transformers"
    from spin_core.evaluation.hub import go_offline, is_hub_reachable
    from spin_core.evaluation.local_tasks import write_tasks

    if settings.local_data is None and is_hub_reachable():
        rows = "rows come from the hub when they are needed"
    elif settings.local_data is None:
        from spin_core.evaluation.find_tasks import tasks_from_hub

        go_offline()
        for _ in tasks_from_hub(list(tasks.values())):
            pass
        rows = "the hub is out of reach, and the rows are all in its cache here"
    else:
        if not settings.local_data.is_dir():
            raise ConfigError(
                f"evaluate.lm_eval.local_data {settings.local_data} is not a folder: give one, or unset it"
            )
        local = write_tasks(list(tasks), settings.local_data, scratch)
        borrowers = [
            task.name
            for name, written in local.items()
            for task in written.tasks
            if task.borrows_examples(tasks[name].num_fewshot)
        ]
        rows = f"rows are in {settings.local_data}"
        if borrowers:
            rows += f", which has no rows of their own for the examples in prompts of {', '.join(borrowers)}"
    inspection.add("benchmarks", f"{names}, run by {engine}: {rows}")


def inspect_judge(inspection: Inspection, config: RunConfig) -> None:
    """MT-Bench: its judge answers with the model that is configured, and its questions are available."""
    evaluate = config.evaluate
    if not suites.mt_bench_suites(evaluate):
        return
    from spin_core.evaluation.mt_bench.endpoint import JudgeEndpoint
    from spin_core.evaluation.mt_bench.judge_prompts import OWN_PROMPTS, read_prompts
    from spin_core.evaluation.mt_bench.questions import HUB, load_questions

    folder = evaluate.mt_bench.data
    prompts = "the built-in prompts" if read_prompts(folder) is OWN_PROMPTS else "the folder's prompts"
    questions = (
        f"{len(load_questions(folder))} questions in {folder}" if folder else f"questions are fetched from {HUB}"
    )
    speed = evaluate.judge.speed.model_copy(update={"timeout_seconds": 10.0})
    endpoint = JudgeEndpoint(evaluate.judge.model_copy(update={"speed": speed}))
    endpoint.check(attempts=1)
    inspection.add("judge", f"{evaluate.judge.model} at {endpoint.url} answers, with {prompts}; {questions}")
