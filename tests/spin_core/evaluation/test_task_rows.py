"""Rows of tasks in a folder of files."""

import pytest

from spin_core.errors import ConfigError, DataError
from spin_core.evaluation.task_rows import SINGLE_TASKS, RowsFolder, convert_rows
from tests.support.helpers import data_folder
from tests.support.lineages.benchmark_jobs import benchmark_job, data, model, run_benchmark, write_rows

__all__ = ["data", "model"]


def test_a_task_without_rows_is_an_error_that_lists_tasks_with_rows(tmp_path, model, data):
    with pytest.raises(ConfigError, match=r"'gsm8k' has no rows in .*: choose among arc_easy, .*, mmlu") as error:
        run_benchmark(benchmark_job(tmp_path / "lm-eval", model, data, "gsm8k"))
    assert "openbookqa" in str(error.value)
    with pytest.raises(ConfigError, match="is not a folder"):
        run_benchmark(benchmark_job(tmp_path / "lm-eval", model, data / "nowhere", "arc_easy"))


def test_the_error_for_an_invalid_row_has_its_line(tmp_path, model):
    write_rows(tmp_path, "arc_easy_test", [{"question": "?", "choices": ["a"], "label": 0}, {"question": "?"}])
    with pytest.raises(
        DataError, match=r"arc_easy_test.jsonl, line 2, is not in the form of arc .*: give question, choices"
    ):
        run_benchmark(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "arc_easy"))
    (tmp_path / "arc_easy_test.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"line 1, is not JSON"):
        run_benchmark(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "arc_easy"))


def test_rows_of_hellaswag_are_split_into_the_columns_of_its_data_set():
    row = {"question": "Roof: A man sits. he", "choices": ["a", "b"], "label": 1}
    assert SINGLE_TASKS["hellaswag"].convert(row) == {
        "activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "endings": ["a", "b"], "label": "1"
    }  # fmt: skip
    whole = {"question": "Style: How to: dress. Do it well.", "choices": ["a"], "label": 0}
    assert SINGLE_TASKS["hellaswag"].convert(whole) | {"endings": []} == {
        "activity_label": "Style", "ctx_a": "How to: dress. Do it well.", "ctx_b": "", "endings": [], "label": "0"
    }  # fmt: skip


def test_every_real_row_is_converted():
    folder = RowsFolder(data_folder("benchmarks").parent)
    sources = folder.sources()
    assert len([name for name in sources if name.startswith("mmlu_")]) == 57
    assert len([name for name in sources if name.startswith("bbh_")]) == 27
    for name, rows in {"arc_easy": 2376, "hellaswag": 10042, "gsm8k": 1319, "mmlu_anatomy": 135}.items():
        source = sources[name]
        path = folder.find(source.file)
        assert len(list(convert_rows(path, folder.rows(path), source))) == rows
