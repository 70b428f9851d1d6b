"""The files of a lineage's copy."""

from spin_core.lineage.lineage import Lineage
from spin_core.remote.manifest import files_of, local_path


def contents(lineage: Lineage) -> dict[str, bytes]:
    """The bytes of all files of a copy, by path."""
    return {path: local_path(lineage.root, path).read_bytes() for path in files_of(lineage)}
