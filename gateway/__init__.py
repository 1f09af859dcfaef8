"""The OpenAI-compatible edge and its composition root."""
