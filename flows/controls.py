"""Controls: what SPIN is compared with, trained and scored in the same lineage."""

from spin_core.lineage import controls, rescore
from spin_core.lineage.lineage import Lineage, trained_model
from spin_core.store.records import PromptSet
from tasks.evaluate import Reports, evaluate
from tasks.train import read_preferences, score_preferences, train_control


def compare_with_controls(game: Lineage, prompts: PromptSet, of_base: Reports) -> None:
    """Train and score the controls of the configuration, and score θ_0 at other temperatures.

    Controls are continued SFT, DPO, longer and smaller trainings.
    """
    records = game.records()[: game.config.iterations]
    base = records[0].opponent
    for control in controls.plan(game, records):
        start = records[-1].player if control.after else base
        pairs, scores = (records[0].pairs, records[0].scores) if control.learns_from == "pairs" else (None, None)
        if control.learns_from == "preferences":
            pairs = read_preferences(game, control, base, prompts)
            scores = score_preferences(game, control, start, pairs)
        train_control(game, control, start, prompts, pairs, scores)
        folder = game.control(control.name)
        evaluate(game, trained_model(folder / "model"), prompts, of_base, folder=folder / "eval")
    for temperature in game.config.controls.temperatures:
        folder = game.control(f"temperature-{temperature:g}")
        evaluate(game, base, prompts, folder=folder / "eval", temperature=temperature)
    rescore.set_aside_incomparable(game, of_base)
