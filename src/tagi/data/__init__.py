"""Data sources, prompts and tokenizers; nothing here imports the model."""
