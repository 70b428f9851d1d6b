"""Runs from Prefect's own pages, with a real browser, server and worker: started, watched, read, retried, cancelled.

With SPIN_SCREENSHOTS the run is the demo's, and pictures of it go to the folder of that name: `make screenshots`.
"""

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from flows.parameters import AS_THE_LINEAGE
from spin_core.config.evaluate import SuiteName
from spin_core.config.recipes import RECIPES
from tests.support.servers import served
from tests.support.servers.prefect_ui import FINISHED, RUNNING, Ui, open_context, pictures_folder, signed_in
from tests.support.servers.served import Up, free_port, holder, wait_for

pytestmark = pytest.mark.slow

LINEAGE = "mine"
ENDLESS = 10_000
"""Epochs of a training that does not end during the tests."""
SAVE_EVERY = 50
TINY = {
    "sft": {"hidden_size": 8, "intermediate_size": 16, "layers": 1, "train": {"epochs": 1}},
    "prompts": {"sample": 96, "held_out": 16},
    "train": {"batch_size": 16, "epochs": [2, ENDLESS], "save_every": SAVE_EVERY},
    "gate": {"rule": "always"},
    "controls": {"sft_continued": False, "temperatures": [0.7]},
}
DEMO = {"train": {"epochs": [3, 3, 3, ENDLESS], "save_every": SAVE_EVERY}}
ITERATIONS, OVERRIDES = (3, DEMO) if pictures_folder() else (1, TINY)
SUITE = "" if pictures_folder() else "big-bench-quick"
"""A benchmark that is chosen in the form."""
"""The iteration after these trains without an end, so that there is time to watch it."""
LAST = ITERATIONS - 1


@pytest.fixture(scope="module")
def up(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:  # noqa: ARG001 (or none is served)
    if pictures_folder():
        served.TIMEOUT_SECONDS = 3600.0
    with Up(tmp_path_factory.mktemp("ui") / "runs", free_port(), options=("--reruns", "0")) as started:
        yield started


@pytest.fixture(scope="module")
def ui(browser: Browser, up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with signed_in(browser, up, tmp_path_factory.mktemp("pictures")) as ui:
        yield ui


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two rows of each task of the suite."""
    folder = tmp_path_factory.mktemp("rows")
    question = {"question": "What is cold?", "choices": ["ice", "fire", "steam", "sand"], "label": 0}
    puzzle = {"input": "Is ice cold?", "target": "Yes"}
    tasks = ("causal_judgement", "formal_fallacies", "sports_understanding")
    for name, rows in {
        "bbh": [puzzle | {"task": task} for task in tasks for _ in range(2)],
        "openbookqa_train": [question] * 2,
        "openbookqa_test": [question] * 2,
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def overrides(rows: Path) -> Any:
    """The overrides, filled in as JSON."""
    return OVERRIDES | (
        {"evaluate": {"frontier": [], "lm_eval": {"local_data": str(rows), "limit": 1}}} if SUITE else {}
    )


@pytest.fixture(scope="module")
def finished_run(up: Up, ui: Ui, overrides: Any) -> Any:
    """The run that was started by the form, once it has ended."""
    ui.open_form()
    ui.choose("recipe", "demo")
    ui.fill(LINEAGE, ITERATIONS)
    ui.picture("ui-form", 1000)
    ui.fill_overrides(overrides)
    if SUITE:
        ui.show_overrides_as("form")
        ui.choose_suite(SUITE)
    run = ui.start(f"demo-{LINEAGE}")
    ui.leave()
    wait_for((up.runs / LINEAGE / f"iter_{LAST:02d}" / "jobs" / "train.pid").exists)
    ui.open_run(run)
    wait_for(ui.graph_has(FINISHED))
    ui.picture("ui-run")
    ui.leave()
    return up.finish(run)


@dataclass
class Training:
    """A run whose training does not end."""

    run: Any
    pid: Path
    """Names the training's process."""

    def processes(self) -> list[int]:
        """The run's processes, children of children included."""
        mark, pids = f"PREFECT__FLOW_RUN_ID={self.run['id']}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if mark in words:
                pids.append(int(path.parent.name))
        return pids

    def pause(self) -> None:
        """Stop the training's process, which would otherwise compute while pages are read."""
        os.kill(self.trainer(), signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.trainer(), signal.SIGCONT)

    def trainer(self) -> int:
        """The process that trains."""
        return int(self.pid.read_text().split()[0])


def steps(up: Up, since: str = "") -> int:
    """The number of steps of the newest training, from its progress artifact; 0 without one."""
    query = {"artifacts": {"type": {"any_": ["progress"]}}, "sort": "CREATED_DESC"}
    newest = next(
        (artifact for artifact in up.request("POST", "/artifacts/filter", query) if artifact["created"] > since), None
    )
    match = re.match(
        rf"iter {ITERATIONS:02d} · train: ([\d,]+) of [\d,]+ steps", newest["description"] if newest else ""
    )
    return int(match[1].replace(",", "")) if match else 0


@pytest.fixture(scope="module")
def training(up: Up, ui: Ui, finished_run: Any) -> Training:
    """One more iteration, from its name and number alone. Its training is paused where no test needs its steps."""
    assert finished_run["state_name"] == "Completed"
    ui.open_form()
    ui.fill(LINEAGE, ITERATIONS + 1)
    run = ui.start(LINEAGE)
    ui.leave()
    wait_for(lambda: steps(up) > SAVE_EVERY)
    training = Training(run, up.runs / LINEAGE / f"iter_{ITERATIONS:02d}" / "jobs" / "train.pid")
    training.pause()
    return training


@dataclass
class Retried:
    """A run whose process was killed in training, and that was retried."""

    steps_before: int
    crashed_at: str


@pytest.fixture(scope="module")
def retried(up: Up, ui: Ui, training: Training) -> Retried:
    ui.open_run(training.run)
    before = steps(up)
    os.kill(holder(up.runs / LINEAGE), signal.SIGKILL)
    ui.wait_until_visible(ui.state("Crashed"))
    wait_for(lambda: not training.processes())
    crashed = up.request("GET", f"/flow_runs/{training.run['id']}")
    ui.act("Retry", "Retry")
    ui.leave()
    wait_for(lambda: steps(up, crashed["end_time"]) > 0)
    training.pause()
    return Retried(before, crashed["end_time"])


@pytest.fixture(scope="module")
def cancelled(up: Up, ui: Ui, training: Training, retried: Retried) -> Any:  # noqa: ARG001 (the same run)
    """The run as it ended, cancelled while it trained."""
    assert len(training.processes()) > 1
    ui.open_run(training.run)
    ui.wait_until_visible(ui.state("Running"))
    training.resume()  # it saves its work when it is cancelled
    ui.act("Cancel", "Cancel Flow Run")
    ui.leave()
    return up.finish(training.run)


def test_the_printed_address_signs_in_and_leaves_no_password_in_the_history(ui):
    assert urlsplit(ui.page.url).path == "/v2/deployments"
    expect(ui.page.get_by_role("link", name="nightly", exact=True).first).to_be_visible()
    while ui.page.url != "about:blank":
        assert "sign-in" not in ui.page.url
        ui.page.go_back()


@pytest.mark.parametrize("version", ["", "/v2"])
def test_without_the_password_the_pages_ask_for_it(browser, up, version):
    context = open_context(browser)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{up.port}{version}/deployments")
    expect(page.get_by_role("textbox").first).to_be_visible()
    expect(page.get_by_text("nightly")).to_have_count(0)
    context.close()


def test_the_form_lists_all_choices(ui):
    ui.open_form()
    assert ui.chosen("recipe") == AS_THE_LINEAGE
    assert ui.choices("recipe") == [AS_THE_LINEAGE, *RECIPES]
    ui.choose("recipe", "zephyr-7b")
    assert ui.chosen("recipe") == "zephyr-7b"
    for name in ("lineage", "iterations", "recipe", "overrides", "runs"):
        assert len(ui.field(name).locator("p").first.inner_text()) > len(name), "each has its help"
    expect(ui.page.get_by_role("tab", name="leave as it is").first).to_be_visible()
    expect(ui.page.get_by_text("Property is type")).to_have_count(0)
    ui.choose_suite("mt-bench-quick")
    assert ui.choices("suites") == list(get_args(SuiteName))


def test_an_invalid_value_is_rejected_in_the_form_before_a_run_exists(up, ui):
    before = up.count_runs()
    ui.open_form()
    ui.fill("Mine!", -1)
    ui.submit()
    number = ui.field("iterations").get_by_role("spinbutton")
    assert number.evaluate("one => one.validity.rangeUnderflow")
    number.fill("2")
    ui.submit()
    expect(ui.field("lineage")).to_contain_text("'Mine!' does not match")
    expect(ui.field("lineage")).to_contain_text("lower-case letters, digits and dashes")
    ui.field("lineage").get_by_role("textbox").fill("mine")
    ui.field("generate").get_by_role("tab", name="change").first.click()
    ui.field("top p").get_by_role("spinbutton").fill("1.5")
    ui.submit()
    assert ui.field("top p").get_by_role("spinbutton").evaluate("one => one.validity.rangeOverflow")
    ui.field("top p").get_by_role("spinbutton").fill("")
    ui.fill_overrides({"train": {"beta": 0}})
    ui.show_overrides_as("form")
    ui.submit()
    expect(ui.field("beta")).to_contain_text("0 is not valid")
    assert up.count_runs() == before


def test_the_form_has_the_recipes_values_and_can_empty_a_list(ui):
    ui.open_form()
    ui.field("train").get_by_role("tab", name="change").first.click()
    expect(ui.field("batch size")).to_contain_text("In the recipes: 64; demo: 256")
    ui.field("controls").get_by_role("tab", name="change").first.click()
    ui.field("temperatures").get_by_role("tab", name="empty").click()
    with ui.page.expect_request(lambda request: request.url.endswith("/ui/schemas/validate")) as request:
        ui.submit()
    assert request.value.post_data_json["values"]["overrides"]["controls"]["temperatures"] == []


def test_a_run_has_the_values_of_the_form(finished_run, overrides):
    assert finished_run["state_name"] == "Completed"
    assert finished_run["name"] == f"demo-{LINEAGE}"
    sent = finished_run["parameters"]
    assert {name: value for name, value in sent.items() if name != "overrides"} == {
        "recipe": "demo", "lineage": LINEAGE, "iterations": ITERATIONS, "runs": ""
    }  # fmt: skip
    chosen = {"evaluate": overrides["evaluate"] | {"suites": [SUITE]}} if SUITE else {}
    assert filled_in(sent["overrides"]) == overrides | chosen


def filled_in(form: Any) -> Any:
    """The form without settings that keep the recipe's values."""
    if not isinstance(form, dict):
        return form
    return {name: filled_in(value) for name, value in form.items() if value is not None}


def test_an_iteration_has_a_page_with_its_tables_and_plots(ui, finished_run):
    ui.versions(f"{LINEAGE}-iteration-{LAST:02d}").first.click()
    expect(ui.page.get_by_role("heading", name=f"{LINEAGE}: θ_{LAST} → θ_{LAST + 1}")).to_be_visible()
    expect(ui.page.get_by_role("link", name=finished_run["name"]).first).to_be_visible()
    scores = ui.page.get_by_role("table").first
    expect(scores).to_contain_text("total_variation")
    expect(scores.get_by_role("row")).not_to_have_count(1)
    drawn = ui.pictures()
    assert list(drawn) == [
        "total_variation over the versions",
        "training curve",
        "lengths of human and generated responses",
    ]
    assert min(drawn.values()) > 300
    assert ui.sideways() == 0
    ui.picture("ui-iteration", 1280)


@pytest.mark.usefixtures("finished_run")
def test_the_leaderboard_has_a_timeline_of_its_versions(up, ui):
    key = f"leaderboard-{LINEAGE}"
    versions = ui.versions(key)
    made = up.artifacts(key)
    assert len(made) > ITERATIONS, "one for each iteration, and one with the controls"
    assert [artifact.inner_text() for artifact in versions.all()] == [artifact["id"][:8] for artifact in made]
    versions.first.click()
    expect(ui.page.get_by_role("heading", name=f"Leaderboard of {LINEAGE}")).to_be_visible()
    headline = ui.page.get_by_role("table").first
    for name in ("θ_0", f"θ_{ITERATIONS}", "temperature-0.7"):
        expect(headline.get_by_role("row").filter(has_text=name)).to_have_count(1)
    expect(headline).to_contain_text(SUITE)
    assert min(ui.pictures().values()) > 300
    assert ui.sideways() == 0
    ui.picture("leaderboard", 1000)


def test_a_lineage_goes_on_with_its_own_settings_from_its_name_and_the_iterations_alone(up, training):
    sent = training.run["parameters"]
    assert filled_in(sent["overrides"]) == {}
    assert (sent["lineage"], sent["iterations"], sent["recipe"]) == (LINEAGE, ITERATIONS + 1, AS_THE_LINEAGE)
    config = json.loads((up.runs / LINEAGE / "lineage.json").read_text())["config"]
    assert config["train"]["batch_size"] == OVERRIDES["train"].get("batch_size", config["train"]["batch_size"])
    assert config["train"]["epochs"] == OVERRIDES["train"]["epochs"], "its own, and not the recipe's"


def test_a_copied_run_opens_the_form_with_its_values(ui, finished_run):
    ui.open_run(finished_run)
    ui.act("Copy to new run")
    expect(ui.field("lineage").get_by_role("textbox")).to_have_value(LINEAGE)
    assert ui.chosen("recipe") == "demo"
    ui.leave()


def test_a_run_can_be_watched(up, ui, training):
    ui.open_run(training.run)
    ui.wait_until_visible(ui.state("Running"))
    ui.wait_until_visible(ui.task(f"train t={ITERATIONS}", "Running"))
    ui.wait_until_visible(ui.task(f"train t={LAST}", "Reused"))
    wait_for(ui.graph_has(RUNNING))
    ui.page.get_by_role("tab", name="Artifacts").click()
    progress = ui.page.get_by_role(
        "link", name=re.compile(rf"iter {ITERATIONS:02d} · train: [\d,]+ of [\d,]+ steps +loss")
    )
    ui.wait_until_visible(progress).click()
    expect(ui.page.get_by_text(re.compile(r"^Progress: \d+(\.\d)?%$"))).to_be_visible()
    ui.leave()
    before = steps(up)
    training.resume()
    wait_for(lambda: steps(up) > before)
    training.pause()


def test_a_crashed_run_continues_on_retry(up, ui, training, retried):
    ui.open_run(training.run)
    for name in ("generate", "build pairs", "score"):
        ui.wait_until_visible(ui.task(f"{name} t={ITERATIONS}", "Reused"))
    assert steps(up, retried.crashed_at) > retried.steps_before - SAVE_EVERY
    assert up.history(training.run).count("Crashed") == 1


def test_a_cancelled_run_leaves_no_process_behind(up, ui, training, cancelled):
    assert cancelled["state_name"] == "Cancelled"
    wait_for(lambda: not training.processes())
    assert not up.alive("spin_core.phases.train")
    ui.open_run(training.run)
    ui.wait_until_visible(ui.state("Cancelled"))
