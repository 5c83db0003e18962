"""The processes that share one training."""
