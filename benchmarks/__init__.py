"""Measurements, side by side with peers. Nothing here is asserted: machines are noisy, ratios are what counts."""
