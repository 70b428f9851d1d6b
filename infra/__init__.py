"""Where runs live: templates for servers, workers and clusters."""
