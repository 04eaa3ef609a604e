"""Configuration, records, the workspace of stages, and the processes of one: what everything else builds on."""
