"""Pixels to latents or codes and back, and the store of raw latents."""
