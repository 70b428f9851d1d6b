"""What suites need in addition to their rows: a one-line error before compute if it is missing."""

import http.server
import json
import threading

import nltk
import pytest
from huggingface_hub import constants

from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError
from spin_core.evaluation import suites
from spin_core.evaluation.hub import is_hub_reachable
from spin_core.preflight.evaluation import inspect_benchmarks
from spin_core.preflight.findings import Inspection

COUNTED = {
    "key": 1,
    "prompt": "Say it.",
    "instruction_id_list": ["length_constraints:number_sentences"],
    "kwargs": [{}],
}
PLAIN = {**COUNTED, "instruction_id_list": ["punctuation:no_comma"]}


@pytest.fixture(autouse=True)
def nltk_data(tmp_path, monkeypatch):
    """The only folder in which NLTK inspection for data; it is empty."""
    folder = tmp_path / "nltk_data"
    folder.mkdir()
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    return folder


def asking(*suites_, **lm_eval):
    return resolve("demo", overrides={"evaluate": {"suites": suites_, "lm_eval": lm_eval}})


def test_ifeval_without_nltks_data_is_an_error_that_says_how_to_get_them(nltk_data):
    with pytest.raises(
        ConfigError, match=r"punkt_tab, which is not here: run `python -m nltk.downloader.*NLTK_DATA"
    ) as no:
        suites.check(asking("instruct"))
    assert "\n" not in str(no.value)
    with pytest.raises(ConfigError, match="punkt_tab"):
        suites.check(asking(tasks=["ifeval"]))
    (nltk_data / "tokenizers" / "punkt_tab").mkdir(parents=True)
    suites.check(asking("instruct"))


def test_local_rows_of_ifeval_need_the_data_only_if_one_counts_sentences(tmp_path):
    path = tmp_path / "ifeval_train.jsonl"
    path.write_text(json.dumps(PLAIN))
    suites.check(asking("instruct", local_data=str(tmp_path)))
    path.write_text(f"{json.dumps(PLAIN)}\n{json.dumps(COUNTED)}\n")
    with pytest.raises(ConfigError, match="punkt_tab"):
        suites.check(asking("instruct", local_data=str(tmp_path)))


def test_spin_check_says_that_the_hubs_rows_are_unreachable(tmp_path):
    inspection = Inspection()
    inspection.run("benchmarks", inspect_benchmarks, asking(tasks=["arc_easy"]), tmp_path)
    ((level, text),) = [(finding.level, finding.text) for finding in inspection.findings]
    assert level == "wrong"
    assert text.startswith("the rows of arc_easy could not be loaded from the hub (")
    assert text.endswith("connect to it, or set evaluate.lm_eval.local_data to a folder with the rows")


def test_the_hub_is_reachable_if_it_answers_with_any_status(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert is_hub_reachable()
        thread.join()
    assert not is_hub_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not is_hub_reachable()
