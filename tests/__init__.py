"""A package, so that `tests.official` is this one: torch-fidelity installs another `tests`."""
