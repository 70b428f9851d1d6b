"""The jobs of the phases."""

from spin_core.lineage import phase_jobs
from spin_core.lineage.find import lineage_names
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.store import lock
from tests.support.lineages.small_lineage import demo_config


def start(runs, name="tale", *, sets=()) -> Lineage:
    with lock.locked(runs / name):
        return start_lineage(runs, name, demo_config(*sets))


def test_jobs_take_each_iterations_settings(built):
    config = demo_config("train.beta=[0.1, 5.0]", "pairs.mix_previous=[false, true]", "seed=10")
    lineage = Lineage(built.runs, "tale", config)
    record = lineage.records()[0]
    jobs = [phase_jobs.train_job(lineage, t, record.opponent, record.pairs, record.scores) for t in range(3)]
    assert [job.config.beta for job in jobs] == [0.1, 5.0, 5.0]
    assert [job.seed for job in jobs] == [10, 11, 12]
    pairs = [phase_jobs.pairs_job(lineage, t, record.prompts, record.generations, record.generations) for t in range(2)]
    assert [job.previous is not None for job in pairs] == [False, True]


def test_identical_pairs_are_dropped_only_where_they_have_no_gradient(built):
    record = Lineage(built.runs, "tale", demo_config()).records()[0]

    def drops(*sets: str) -> bool:
        lineage = Lineage(built.runs, "tale", demo_config(*sets))
        return phase_jobs.pairs_job(lineage, 0, record.prompts, record.generations, None).config.drop_identical

    assert drops() is True
    assert drops("train.loss=space") is False
    assert drops("train.nll_weight=0.1") is False
    assert drops("pairs.drop_identical=false") is False


def test_models_that_recipes_train_are_shared_by_what_made_them(tmp_path):
    first, same = start(tmp_path, "one"), start(tmp_path, "same", sets=["train.beta=0.7"])
    other = start(tmp_path, "other", sets=["sft.hidden_size=48"])
    assert phase_jobs.base_job(first) == phase_jobs.base_job(same)
    assert phase_jobs.base_job(first).output != phase_jobs.base_job(other).output
    assert phase_jobs.base_job(first).output.parent.parent == tmp_path / ".sft"
    assert lineage_names(tmp_path) == ["one", "other", "same"]
