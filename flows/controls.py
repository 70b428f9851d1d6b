"""Controls: what SPIN is compared with, trained and scored in the same lineage."""

from spin_core.lineage import controls, rescore
from spin_core.lineage.lineage import Lineage, trained_model
from spin_core.store.records import PromptSet
from tasks.evaluate import Reports, evaluate
from tasks.train import read_preferences, score_preferences, train_control


def compare_with_controls(lineage: Lineage, prompts: PromptSet, of_base: Reports) -> None:
    """Train and score the controls of the configuration, and score θ_0 at other temperatures.

    Controls are continued SFT, DPO, longer and smaller trainings.
    """
    records = lineage.records()[: lineage.config.iterations]
    base = records[0].opponent
    for control in controls.plan(lineage, records):
        start = records[-1].player if control.after else base
        pairs, scores = (records[0].pairs, records[0].scores) if control.learns_from == "pairs" else (None, None)
        if control.learns_from == "preferences":
            pairs = read_preferences(lineage, control, base, prompts)
            scores = score_preferences(lineage, control, start, pairs)
        train_control(lineage, control, start, prompts, pairs, scores)
        folder = lineage.control(control.name)
        evaluate(lineage, trained_model(folder / "model"), prompts, of_base, folder=folder / "eval")
    for temperature in lineage.config.controls.temperatures:
        folder = lineage.control(f"temperature-{temperature:g}")
        evaluate(lineage, base, prompts, folder=folder / "eval", temperature=temperature)
    rescore.set_aside_incomparable(lineage, of_base)
