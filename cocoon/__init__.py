"""The protocol that every party shares: money, ids, usage, tickets, receipts, framing.

Pure values and byte formats. Nothing in this package opens a socket, a file or a database, and nothing here
may import another package of this repository.
"""
