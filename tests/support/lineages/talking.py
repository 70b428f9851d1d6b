"""A lineage whose versions are real, tiny models that answer."""

import shutil
from pathlib import Path

from spin_core.lineage.lineage import Lineage
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.small_lineage import build_lineage

SETTINGS = ("chat.template=plain", "generate.max_new_tokens=12", "model.device=cpu")


def build_talking_lineage(runs: Path) -> Lineage:
    """The lineage `tale` with other random weights in the folder of each version.

    Its manifests are those of `build_lineage`, so it cannot be verified.
    """
    lineage = build_lineage(runs, sets=SETTINGS)
    records = lineage.records()
    folders = [records[0].opponent.path, *(record.player.path for record in records)]
    for seed, folder in enumerate(folders):
        model = save_tiny_model(runs / "made" / str(seed), character_tokenizer(), seed)
        shutil.copytree(model, folder, dirs_exist_ok=True)
    shutil.rmtree(runs / "made")
    return lineage
