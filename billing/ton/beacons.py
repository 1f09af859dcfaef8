"""The blocks that statements of evidence name, looked up in a chain of one's own (PROTOCOL §1)."""

from billing.ton.chain import BlockRef, Chain
from cocoon.statement import Beacon


def beacon_of(block: BlockRef) -> Beacon:
    """A block as statements name it."""
    return Beacon(
        seqno=block.seqno, root_hash=block.root_hash, file_hash=block.file_hash, gen_utime=block.gen_utime
    )  # fmt: skip


async def own_beacon(chain: Chain, named: Beacon) -> Beacon | None:
    """What the chain has where a statement names a block; None where it names none, or the chain has not come so far.

    A number beyond the last block with a time before it has the last block for an answer: such a block is not, and
    will not be, in this chain.

    Raises:
        ChainUnavailableError: nobody answered, or nobody keeps blocks that old.
        ChainProofError: the answer does not prove itself.
    """
    if named.seqno == 0:
        return None
    head = await chain.head()
    if named.seqno <= head.seqno:
        return beacon_of(await chain.block(named.seqno))
    return beacon_of(head) if named.gen_utime < head.gen_utime else None
