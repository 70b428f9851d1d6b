"""Prefect's server as a child that ends when its parent does, however that ends: `python -m flows.server.child …`.

The arguments are uvicorn's. The kernel is asked before anything is loaded, so that a parent that is killed in its first
seconds leaves no server behind.
"""

from spin_core.runtime.process import die_with_parent

if __name__ == "__main__":
    die_with_parent()

    import uvicorn

    uvicorn.main()
