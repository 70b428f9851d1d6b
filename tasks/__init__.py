"""Thin Prefect tasks, one file a phase."""
