"""A process that imports what most phases need, before its phase is known: `python -m spin_core.phases.warm`.

It waits for one line `phase<TAB>job.json` on stdin, and runs that phase. So the imports of the next phase (seconds, for
torch and transformers) happen while the current one runs. It runs one phase and ends, so each phase still has its own
process. At the end of stdin without a line it ends.
"""

import os
import runpy
import sys

from spin_core.runtime.process import die_with_parent


def main() -> None:
    """Import, wait for the line, run the phase."""
    die_with_parent()
    import pyarrow.parquet  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    import spin_core.inference.transformers_engine
    import spin_core.models.loading  # noqa: F401

    line = sys.stdin.readline()
    if not line:
        return
    phase, job_file = line.rstrip("\n").split("\t")
    os.dup2(os.open(job_file, os.O_RDONLY), 0)  # its arguments do not show the job, so its input does
    sys.argv = [phase, job_file]
    runpy.run_module(f"spin_core.phases.{phase}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
