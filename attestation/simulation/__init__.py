"""A simulated TEE that is built from a seed and judged by the same code as a real one.

It proves nothing about any machine. Production refuses it, and whatever it made says so.
"""
