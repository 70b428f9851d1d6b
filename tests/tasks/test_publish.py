"""What Prefect is shown of an iteration, on a real server: the gate's event, and artifacts that no kill leaves out."""

import json
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from prefect import flow, tags
from prefect.settings import PREFECT_API_URL

from flows import compare, evaluate, nightly, spin
from flows.parameters import Overrides
from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError
from spin_core.remote import push as pushes
from tasks import display, publish
from tasks.push import push
from tests.support.lineages.small_lineage import NLLS, build_lineage, suite_report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_server")]


@pytest.fixture(autouse=True)
def outlives_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow of the command line would end this process together with the server, which is a child of it."""
    for command in (compare, evaluate, spin):
        monkeypatch.setattr(command, "end_with_temporary_server", lambda: None)


@flow
def publish_all(lineage) -> None:
    for record in lineage.records():
        publish.publish_iteration(lineage, record)


@flow
def publish_board(lineage) -> None:
    publish.publish_leaderboard(lineage)


def ask(path: str, query: dict) -> list[dict]:
    answer = httpx.post(f"{PREFECT_API_URL.value()}{path}", json=query, timeout=60)
    answer.raise_for_status()
    rows = answer.json()
    return rows["events"] if isinstance(rows, dict) else rows


def events(lineage: str, least: int) -> list[dict]:
    """The gate's events of a lineage, the oldest first, once there are `least`: the server stores them with a delay."""
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    query = {
        "filter": {
            "occurred": {"since": since},
            "event": {"prefix": ["spin.gate."]},
            "resource": {"id": [f"spin.lineage.{lineage}"]},
            "order": "ASC",
        }
    }
    deadline = time.monotonic() + 60
    while len(sent := ask("/events/filter", query)) < least and time.monotonic() < deadline:
        time.sleep(0.2)
    return sent


def artifacts(key: str) -> list[dict]:
    return ask("/artifacts/filter", {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"})


def test_every_decision_of_the_gate_is_an_event_of_its_lineage(tmp_path):
    lineage = build_lineage(tmp_path, "falls", nlls=(*NLLS[:2], NLLS[0]), sets=["gate.rule=stop"])
    publish_all(lineage)
    first, second = events("falls", 2)
    assert (first["event"], second["event"]) == ("spin.gate.promote", "spin.gate.stop")
    assert second["resource"]["prefect.resource.name"] == "falls"
    payload = second["payload"]
    assert (payload["t"], payload["next_opponent"], payload["metric"]) == (2, 1, "heldout_nll")
    # NLLS[0] less NLLS[1] item by item: .5, .6, .4, .5, twice.
    assert (payload["delta"], payload["stderr"]) == (pytest.approx(0.5), pytest.approx(0.0267261))
    assert payload["reason"].startswith("stopped: heldout_nll 3.5 against 3 of θ_1")
    assert lineage.records()[1].gate.delta == payload["delta"]
    page = (lineage.iteration(1) / "report.md").read_text("utf-8")
    assert "**Gate: stop.** stopped: heldout_nll" in page
    assert "| θ_1 ◂ |" in artifacts("leaderboard-falls")[0]["data"].replace("\u00a0", " ")
    assert json.loads((lineage.root / "leaderboard.json").read_text("utf-8"))["choice"] == 1


def test_publishing_again_adds_nothing(tmp_path):
    lineage = build_lineage(tmp_path, "twice")
    publish_all(lineage)
    before = (lineage.root / "report.html").stat().st_mtime_ns
    publish_all(lineage)
    assert (lineage.root / "report.html").stat().st_mtime_ns == before
    assert [len(artifacts(f"twice-iteration-{t:02d}")) for t in range(3)] == [1, 1, 0]
    assert len(events("twice", 2)) == 2


@pytest.mark.parametrize("killed_in", ["emit_decision", "show"])
def test_the_next_run_repeats_what_a_kill_interrupted(tmp_path, monkeypatch, killed_in):
    """The page is on disk, and Prefect has not received it, or only a part."""
    name = f"killed-{killed_in.replace('_', '-')}"
    lineage = build_lineage(tmp_path, name, nlls=NLLS[:2])
    record, real = lineage.records()[0], getattr(publish, killed_in)

    def kill(*given) -> None:
        if killed_in == "emit_decision" or "iteration" in given[0]:
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setattr(publish, killed_in, kill)
    with pytest.raises(KeyboardInterrupt):
        publish_all(lineage)
    assert lineage.page(0).exists()
    assert artifacts(f"{name}-iteration-00") == []
    monkeypatch.undo()
    publish_all(lineage)
    (page,) = artifacts(f"{name}-iteration-00")
    assert page["data"].endswith(f"\n\n{lineage.page(0).read_text('utf-8')}")
    (event,) = events(name, 1)
    assert event["payload"]["reason"] == record.gate.reason


def test_pages_link_each_other_and_where_they_are_served_also_the_files(tmp_path, monkeypatch):
    monkeypatch.delenv("SPIN_PAGES", raising=False)
    lineage = build_lineage(tmp_path, "linked", nlls=NLLS[:2])
    key = "/v2/artifacts/key/"
    of_prefect = f"[leaderboard]({key}leaderboard-linked) · [iteration 0]({key}linked-iteration-00)"
    publish_all(lineage)
    for name in ("leaderboard-linked", "linked-iteration-00"):
        assert artifacts(name)[0]["data"].startswith(f"{of_prefect}\n\n#")
    monkeypatch.setenv("SPIN_PAGES", "/lineages/")
    publish_board(lineage)
    files = "[report](/lineages/linked/report.html) · [samples](/lineages/linked/samples.html)"
    assert artifacts("leaderboard-linked")[0]["data"].startswith(
        f"{of_prefect} · {files} · [linked](/lineages/linked/)"
    )
    assert (lineage.root / "samples.html").stat().st_size > 1000


class Shown(display.Silent):
    """What a terminal would show."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def finished(self, title: str, _seconds: float) -> None:
        self.lines.append(f"done {title}")

    def reused(self, title: str) -> None:
        self.lines.append(f"reused {title}")

    def noted(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("store", ["file", "nowhere"])
def test_a_run_updates_its_copy_and_continues_if_that_fails(tmp_path, monkeypatch, store):
    monkeypatch.setattr(display, "current", shown := Shown())
    lineage = build_lineage(tmp_path / "runs", sets=[f"push.url={store}://{tmp_path}/copy"])

    @flow
    def push_twice() -> str:
        push(lineage)
        push(lineage)
        return "went on"

    assert push_twice() == "went on"
    if store == "file":
        assert shown.lines == ["done push", "reused push"]
        assert (tmp_path / "copy" / "tale" / "iter_01" / "record.json").exists()
    else:
        reason = "no store is known whose URLs begin with nowhere://: use file, s3, gs or hf"
        assert shown.lines == [f"not pushed: {reason}; nothing is lost here, and the next push uploads the rest"] * 2


@pytest.mark.parametrize("store", ["file", "nowhere"])
def test_scoring_afterwards_brings_the_copy_up_to_date_too(tmp_path, monkeypatch, store):
    """The scores are made by hand here; all else is `spin evaluate`."""
    monkeypatch.setattr(display, "current", shown := Shown())
    lineage = build_lineage(tmp_path / "runs", "later", sets=[f"push.url={store}://{tmp_path}/copy"])
    copy = tmp_path / "copy" / "later"
    if store == "file":
        pushes.push(lineage, lineage.config.push)
        assert "arc_easy" not in (copy / "leaderboard.json").read_text("utf-8")

    def score(_game, player, *_, **__) -> None:
        suite_report(lineage.eval_folder(player.t) / "lm-eval", player.digest, {"arc_easy": [0.0, 1.0]})

    monkeypatch.setattr(evaluate, "score", score)
    monkeypatch.setattr(evaluate, "_start", lambda _lineage: (lineage.records()[0].opponent, None))
    standing = evaluate.evaluate_local(lineage, ())
    assert "arc_easy" in standing.rows[2].scores
    if store == "nowhere":
        assert [line.partition(":")[0] for line in shown.lines] == ["not pushed"]
        return
    assert shown.lines == ["done push"]
    for name in ("leaderboard.json", "report.html"):
        assert (copy / name).read_bytes() == (lineage.root / name).read_bytes()
    assert (copy / "iter_01" / "eval" / "lm-eval" / "items.parquet").exists()


def listed(*labels: str) -> list[tuple[str, str, str]]:
    """Name, state and message of the runs that have all these tags, the oldest first."""
    runs = ask("/flow_runs/filter", {"flow_runs": {"tags": {"all_": labels}}, "sort": "START_TIME_ASC"})
    return [(run["name"], run["state_name"], run["state"]["message"]) for run in runs]


def stands(key: str) -> str:
    return f"{PREFECT_API_URL.value().removesuffix('/api')}/v2/artifacts/key/{key}"


def test_runs_are_found_by_recipe_and_lineage_and_link_their_leaderboard(tmp_path, monkeypatch):
    """Nothing is run or scored here: a nightly run finds that the gate has ended the lineage."""
    lineage = build_lineage(tmp_path, "found", nlls=(*NLLS[:2], NLLS[0]), sets=["gate.rule=stop"])
    board = publish.board.save(lineage)
    monkeypatch.setattr(spin, "run_iterations", lambda _lineage: board)
    monkeypatch.setattr(evaluate, "score", lambda *_, **__: None)
    monkeypatch.setattr(evaluate, "_start", lambda _lineage: (lineage.records()[0].opponent, None))
    with tags("mine"):
        assert spin.run_local(lineage) == board
        evaluate.evaluate("found", runs=str(tmp_path))
        nightly.nightly("found", runs=str(tmp_path), return_state=True)
    assert evaluate.evaluate_local(lineage, ()) == board
    place = f"leaderboard: {stands('leaderboard-found')}"
    reason = lineage.records()[-1].gate.reason
    assert listed("recipe:demo", "lineage:found", "mine") == [
        ("found", "Completed", place),
        ("evaluate-found", "Completed", place),
        ("nightly-found", "Stopped", f"{reason}; {place}"),
    ]
    assert listed("recipe:demo", "lineage:found")[3:] == [("evaluate-found", "Completed", place)]


def test_the_end_of_a_run_names_the_report_where_it_is_served(tmp_path, monkeypatch):
    lineage = build_lineage(tmp_path, "served", nlls=NLLS[:2])
    monkeypatch.setenv("SPIN_PAGES", "/lineages/")
    monkeypatch.setattr(spin, "run_iterations", lambda _lineage: publish.board.save(lineage))
    spin.run_local(lineage)
    report = f"{PREFECT_API_URL.value().removesuffix('/api')}/lineages/served/report.html"
    message = f"leaderboard: {stands('leaderboard-served')} report: {report}"
    assert listed("lineage:served") == [("served", "Completed", message)]


def test_a_comparison_is_found_by_its_name_and_its_runs_by_their_lineages(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run_locked", lambda *_: None)
    monkeypatch.setattr(compare.comparisons, "table", lambda *_: "the table")
    monkeypatch.setattr(compare, "publish_comparison", lambda *_: None)
    lineages = compare.comparisons.prepare_comparison(
        tmp_path, "trial", resolve("demo", sets=["controls={}"]), 2, ["sft-steps"]
    )
    assert compare.compare_local(tmp_path, "trial", lineages, {}) == "the table"
    place = f"comparison: {stands('comparison-trial')}"
    assert listed("recipe:demo", "comparison:trial") == [("trial", "Completed", place)]
    first, second = listed("recipe:demo", "lineage:trial-seed-1")[0], listed("lineage:trial-seed-2")[0]
    assert first == ("trial-seed-1", "Completed", f"leaderboard: {stands('leaderboard-trial-seed-1')}")
    assert second[0] == "trial-seed-2"


def test_a_comparison_with_a_store_that_a_person_must_fix_begins_nothing(tmp_path):
    overrides = Overrides.model_validate({"push": {"url": "nowhere://copy"}})
    with pytest.raises(ConfigError, match="nowhere"):
        compare.compare(name="trial", overrides=overrides, runs=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
