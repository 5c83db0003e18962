"""Scores, reports and the statistics behind them."""
