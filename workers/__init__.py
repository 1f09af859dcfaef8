"""Which workers there are, which one gets a request, and how to talk to it. Knows nothing of money or of HTTP clients.

The program that runs beside an engine is `workers.agent`, which imports none of this.
"""
