"""The workflow language: schema, step graph, run state machine. Pure."""
