"""The contracts' formats: state inits, addresses, message bodies, and the data cells that liteservers prove.

What `contracts/src/*.tolk` reads and writes, in Python, cell for cell; docs/contracts.md is the description of both. No
I/O: `billing.ton` brings cells to the chain and back.
"""
