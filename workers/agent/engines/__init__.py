"""Engines behind one port: launched or attached, always streaming, always abortable."""
