"""Decoder-only language models: one model file for all families, and their names in files."""
