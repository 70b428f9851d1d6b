"""A process for a phase whose job is not known yet: `python -m spin_core.phases.warm`.

It loads what most phases load, waits for one line `phase<TAB>job.json` on stdin, and becomes that phase. So the next
phase's imports (seconds, for torch and transformers) happen while the present one works. It serves one phase and ends:
a phase is alone in its process as ever. Without a line, at the end of stdin, it ends having done nothing.
"""

import os
import runpy
import sys

from spin_core.runtime.process import die_with_parent


def main() -> None:
    """Load, wait, become a phase."""
    die_with_parent()
    import pyarrow.parquet  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    import spin_core.inference.transformers_engine
    import spin_core.models.loading  # noqa: F401

    line = sys.stdin.readline()
    if not line:
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    phase, job_file = line.rstrip("\n").split("\t")
    sys.argv = [phase, job_file]
    runpy.run_module(f"spin_core.phases.{phase}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
