"""Configuration: its dataclasses, strict parsing, composing, and the places it names."""
