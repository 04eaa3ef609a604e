"""Data sets in: images of small sets, and photos on disk."""
