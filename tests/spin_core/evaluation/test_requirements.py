"""What suites need beside their rows and is not here: said in one line, before anything is computed."""

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
from spin_core.preflight.check import look_at_benchmarks
from spin_core.preflight.findings import Looks

COUNTED = {
    "key": 1,
    "prompt": "Say it.",
    "instruction_id_list": ["length_constraints:number_sentences"],
    "kwargs": [{}],
}
PLAIN = {**COUNTED, "instruction_id_list": ["punctuation:no_comma"]}


@pytest.fixture(autouse=True)
def nltk_data(tmp_path, monkeypatch):
    """The only folder that NLTK looks into; it is empty."""
    folder = tmp_path / "nltk_data"
    folder.mkdir()
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    return folder


def asking(*suites_, **lm_eval):
    return resolve("demo", overrides={"evaluate": {"suites": suites_, "lm_eval": lm_eval}})


def test_ifeval_without_nltks_data_is_refused_in_one_line_that_says_how_to_have_them(nltk_data):
    with pytest.raises(
        ConfigError, match=r"punkt_tab, which is not here: run `python -m nltk.downloader.*NLTK_DATA"
    ) as no:
        suites.check(asking("instruct"))
    assert "\n" not in str(no.value)
    with pytest.raises(ConfigError, match="punkt_tab"):
        suites.check(asking(tasks=["ifeval"]))
    (nltk_data / "tokenizers" / "punkt_tab").mkdir(parents=True)
    suites.check(asking("instruct"))


def test_ifevals_own_rows_want_those_data_only_if_one_has_sentences_counted(tmp_path):
    path = tmp_path / "ifeval_train.jsonl"
    path.write_text(json.dumps(PLAIN))
    suites.check(asking("instruct", local_data=str(tmp_path)))
    path.write_text(f"{json.dumps(PLAIN)}\n{json.dumps(COUNTED)}\n")
    with pytest.raises(ConfigError, match="punkt_tab"):
        suites.check(asking("instruct", local_data=str(tmp_path)))


def test_spin_check_says_that_the_hubs_rows_are_out_of_reach(tmp_path):
    looks = Looks()
    looks.at("benchmarks", look_at_benchmarks, asking(tasks=["arc_easy"]), tmp_path)
    ((level, text),) = [(one.level, one.text) for one in looks.findings]
    assert level == "wrong"
    assert text.startswith("the rows of arc_easy did not come from the hub (")
    assert text.endswith("connect to it, or set evaluate.lm_eval.local_data to a folder with the rows")


def test_the_hub_is_near_when_it_answers_whatever_it_says(monkeypatch):
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
