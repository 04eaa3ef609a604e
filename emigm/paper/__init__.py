"""What the paper states: its architectures, sampling settings and reported numbers."""
