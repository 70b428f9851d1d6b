"""The identity of a job: what its result depends on, and nothing else."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from spin_core.config.base import Execution, Frozen
from spin_core.config.data import PromptsConfig
from spin_core.config.evaluate import JudgeConfig
from spin_core.config.model import ChatConfig, ModelConfig
from spin_core.config.train import TrainConfig
from spin_core.errors import StaleArtifact
from spin_core.store import artifacts, evaluation_jobs, jobs
from spin_core.store.evaluation_jobs import SuiteJob
from spin_core.store.identity import current_identity, differences, identity_of, shorten
from spin_core.store.job_types import JOB_TYPES
from spin_core.store.jobs import Job, PromptsJob, ScoreJob, TrainJob
from spin_core.store.records import ModelVersion, PairDataset


def version(path: str, digest: str = "d1") -> ModelVersion:
    return ModelVersion(path=path, digest=digest, t=0, parent=None)


def train_job(folder: str = "/a", digest: str = "d1", **settings) -> TrainJob:
    return TrainJob(
        output=f"{folder}/train",
        weights=f"{folder}/model",
        t=0,
        config=TrainConfig(**settings),
        model=ModelConfig(),
        start=version(f"{folder}/x", digest),
    )


def score_job(micro_batch_tokens: int) -> ScoreJob:
    pairs = PairDataset(path="/pairs", digest="p", t=0, rows_in=1, rows=1, drops={}, mix={})
    return ScoreJob(
        output="/scores",
        t=0,
        model=ModelConfig(),
        opponent=version("/x"),
        pairs=pairs,
        micro_batch_tokens=micro_batch_tokens,
    )


def test_an_identity_ignores_where_files_are():
    assert identity_of(train_job("/a")) == identity_of(train_job("/b"))
    assert identity_of(train_job("/a")) != identity_of(train_job("/a", "d2"))


def test_an_identity_keeps_what_the_result_depends_on():
    job = train_job()
    for change in ({"version": 2}, {"seed": 1}, {"config": TrainConfig(beta=0.2)}, {"phase": "other"}):
        assert identity_of(job.model_copy(update=change)) != identity_of(job)


def test_settings_that_save_memory_are_not_in_an_identity():
    assert identity_of(score_job(2)) == identity_of(score_job(4))
    less = train_job(micro_batch_tokens=2, gradient_checkpointing=True, keep_checkpoints=1)
    assert identity_of(less) == identity_of(train_job())


def test_a_result_from_a_version_that_counted_such_settings_is_reused(tmp_path):
    scratch = tmp_path / ".model.partial"
    scratch.mkdir()
    (scratch / "a").write_text("1")
    counted_all = train_job().model_dump(mode="json")
    artifacts.publish(scratch, tmp_path / "model", counted_all, {"t": 1, "parent": "d1"}, ModelVersion)
    manifest = artifacts.read_manifest(tmp_path / "model")
    assert manifest is not None
    assert manifest["identity"]["config"]["keep_checkpoints"] == 2
    less = identity_of(train_job(micro_batch_tokens=2, gradient_checkpointing=True, keep_checkpoints=1))
    # The published record of θ_t appears in full there too; it counts by its digest.
    assert artifacts.reusable(tmp_path / "model", less, ModelVersion)
    with pytest.raises(StaleArtifact, match=r"config\.beta = 0\.1, not 0\.2"):
        artifacts.reusable(tmp_path / "model", identity_of(train_job(beta=0.2)), ModelVersion)


def test_a_field_of_an_older_version_stays_so_that_it_appears_as_a_difference():
    identity = identity_of(train_job())
    older = {**identity, "config": {**identity["config"], "speed": {}, "removed": 3}}
    assert differences(current_identity(older), identity) == [("config.removed", 3, None)]


def test_an_identity_that_belongs_to_no_phase_counts_as_it_is():
    assert current_identity({"phase": "task", "speed": 1}) == {"phase": "task", "speed": 1}
    assert current_identity({"model": "m"}) == {"model": "m"}


def test_a_name_counts_where_it_is_not_marked():
    """The names of execution settings are free for others: a column of a user's data may be called `speed`."""

    class Inner(Frozen):
        speed: Execution[int] = 1
        batch: tuple[float, ...] = ()

    class Outer(Frozen):
        speed: int = 1
        inner: Inner | None = None
        more: tuple[Inner, ...] = ()

    inner = Inner(speed=3, batch=(0.5,))
    assert identity_of(Outer(speed=2, inner=inner, more=(inner,))) == {
        "speed": 2,
        "inner": {"batch": [0.5]},
        "more": [{"batch": [0.5]}],
    }
    prompts = PromptsConfig(columns={"speed": "prompt", "python": "response"})
    job = PromptsJob(output="/a", config=prompts, chat=ChatConfig(), tokenizer=version("/x"), max_new_tokens=1)
    assert identity_of(job)["config"]["columns"] == {"speed": "prompt", "python": "response"}
    judge = JudgeConfig(extra_body={"speed": "fast"}, api_key_env="KEY", speed={"parallel": 2})
    assert identity_of(judge) == identity_of(JudgeConfig()) | {"extra_body": {"speed": "fast"}}


def test_every_class_of_jobs_is_listed_under_its_phase():
    names = {**vars(jobs), **vars(evaluation_jobs)}
    classes = {kind for kind in names.values() if isinstance(kind, type) and issubclass(kind, Job)}
    assert classes - {Job, SuiteJob} == {*JOB_TYPES.values()}
    assert all(kind.model_fields["phase"].default == phase for phase, kind in JOB_TYPES.items())


# What version 0.1 left out: these names, wherever they appeared in the JSON of a job.
NAMES_BEFORE = {
    *("speed", "python", "api_key_env"),
    *("gradient_checkpointing", "micro_batch_tokens", "keep_checkpoints", "first_loss_tolerance"),
    # Newer settings that no job of that version depends on.
    *("frontier", "frontier_diversity", "frontier_quality", "frontier_reference"),
}


def identity_before(job: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a job as version 0.1 computed it."""

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            if "digest" in value and "path" in value:
                return value["digest"]
            return {key: strip(item) for key, item in value.items() if key not in NAMES_BEFORE}
        if isinstance(value, (list, tuple)):
            return [strip(item) for item in value]
        return value

    return {key: strip(value) for key, value in job.items() if key not in {"output", "weights", *NAMES_BEFORE}}


def example(annotation: Any) -> Any:
    """A value of a type in which every optional part is present. Limits of numbers and texts are not respected."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return filled(annotation)
    if origin is Annotated:
        return example(parts[0])
    if origin in (Union, UnionType):
        return example(next(part for part in parts if part is not NoneType))
    if origin is Literal:
        return parts[-1]
    if origin is tuple:
        return (example(parts[0]), example(parts[0]))
    if origin is dict:
        return {"one": 1}
    return {str: "text", int: 3, float: 0.25, bool: True, Path: Path("/somewhere")}.get(annotation, "text")


def filled(kind: type[BaseModel]) -> BaseModel:
    """A model with every field set, unvalidated."""
    values = {name: example(field.annotation) for name, field in kind.model_fields.items()}
    if "phase" in values:
        values["phase"] = kind.model_fields["phase"].default
    return kind.model_construct(**values)


def names_in(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from names_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from names_in(item)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("kind", JOB_TYPES.values(), ids=lambda kind: kind.__name__)
def test_the_identity_of_every_job_is_the_one_that_version_0_1_gave_it(kind):
    job = filled(kind)
    values = job.model_dump(mode="json")
    assert identity_of(job) == identity_before(values)
    assert current_identity(values) == identity_before(values)
    assert NAMES_BEFORE.isdisjoint(names_in(identity_of(job)))


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_the_jobs_of_that_comparison_have_every_setting_that_was_left_out():
    assert set().union(*(names_in(filled(kind).model_dump(mode="json")) for kind in JOB_TYPES.values())) >= NAMES_BEFORE


def test_a_field_that_was_added_with_none_changes_nothing():
    assert differences({"a": 1}, {"a": 1, "b": None}) == []
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}) == [("a.b", [1, 2], [1, 3])]


def test_digests_are_cut_in_messages():
    assert shorten("a" * 64) == "a" * 12 + "…"
    assert shorten([0.1, 5]) == "[0.1, 5]"
