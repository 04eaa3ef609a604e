"""The model's mathematics and network: mask schedules, diffusion, backbone, heads."""
