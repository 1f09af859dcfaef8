"""How something gets into the log: a row in the transaction of what it is about.

Nothing is lost between the two, and nothing waits for the log: the sequencer takes rows when they are committed. The
same envelope again changes nothing, also when it has its place already.
"""

from collections.abc import Sequence

from audit.entries import LeafType, entry_of
from audit.errors import EnvelopeTooLongError
from audit.postgres.connections import Writer
from audit.postgres.statements import SQL

ENVELOPE_BYTES_MAX = 1024 * 1024


async def enqueue(connection: Writer, leaf_type: LeafType, envelope: bytes) -> None:
    """Queue an entry. Its envelope is kept and public, unless it is a receipt's; errors are those of the connection.

    Raises:
        EnvelopeTooLongError: nobody would read it.
    """
    if len(envelope) > ENVELOPE_BYTES_MAX:
        raise EnvelopeTooLongError
    entry = entry_of(leaf_type, envelope)
    if leaf_type is not LeafType.RECEIPT:
        await connection.execute(SQL["keep_envelope"], leaf_type.value, entry.digest, envelope)
    await enqueue_digests(connection, leaf_type, [entry.digest])


async def enqueue_digests(connection: Writer, leaf_type: LeafType, digests: Sequence[bytes]) -> None:
    """Queue entries whose envelopes are kept elsewhere, in this order."""
    if digests:
        await connection.execute(SQL["enqueue"], leaf_type.value, list(digests))
