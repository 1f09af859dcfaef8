"""A receipt, judged offline from what was saved: step by step, each with its outcome and a sentence."""
