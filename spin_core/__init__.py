"""Self-play fine-tuning: everything that knows about models. Imports no Prefect."""
