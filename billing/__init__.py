"""Prices, the double-entry ledger, settlement. Knows nothing of HTTP, workers' addresses or prompts."""
