"""Where an agent's evidence comes from: nowhere, a TEE simulated from a seed, or Intel TDX."""
