"""What the `emigm` command does outside the pipeline: parity, doctor, comparison with the paper."""
