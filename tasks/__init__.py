"""Thin Prefect tasks, one file for each phase."""
