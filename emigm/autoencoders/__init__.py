"""Pixels to latents or codes and back."""
