"""The development workers' wallets: words and worker keys under `.cocoon/wallets`, made once and kept.

The workers get their keys as any operator's would: by proving their wallet to the gateway. Only that the words lie
beside the keys is for development.
"""

import random
from pathlib import Path

from billing.postgres.pool import open_pool
from billing.ton.mnemonics import new_mnemonic
from cli.dev.state import DevError
from cli.enrol import EnrolError, Gateway, enrol_by_mnemonic
from cli.private_files import read_private, write_private
from cocoon.addresses import Address
from cocoon.clock import Clock, system_random
from cocoon.mnemonic import read_words, wallet_key
from cocoon.wallets import address_of, state_init_of
from gateway.postgres.keys import KeyStore

APPLICATION = "cocoon-dev"


class DevWallets:
    """One wallet for each worker, in `folder`."""

    def __init__(self, folder: Path, workers: tuple[str, ...], rng: random.Random) -> None:
        self._folder = folder
        self._workers = workers
        self._rng = rng

    def key_file(self, worker: str) -> Path:
        """Where the worker key is."""
        return self._folder / f"{worker}.key"

    def address(self, worker: str, global_id: int) -> Address:
        """The worker's wallet; its words are there once it was enrolled. Takes a fraction of a second."""
        key = wallet_key(read_words(read_private(self._words_file(worker))))
        return address_of(state_init_of("v5r1", key.public_key().public_bytes_raw(), global_id=global_id))

    async def missing(self, dsn: str) -> list[str]:
        """Workers without a key that this database knows."""
        async with open_pool(dsn, application=APPLICATION) as pool:
            keys = KeyStore(pool, system_random())
            return [
                worker
                for worker in self._workers
                if not self.key_file(worker).exists()
                or not await keys.knows(read_private(self.key_file(worker)).strip())
            ]

    def enrol(self, worker: str, gateway_url: str, clock: Clock) -> None:
        """Prove the worker's wallet and keep its key; blocks for about a second.

        Raises:
            DevError: the gateway refuses.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        words = self._words_file(worker)
        if not words.exists():
            write_private(words, " ".join(new_mnemonic(self._rng)).encode() + b"\n")
        try:
            gateway = Gateway(gateway_url, None, plain=True)
            enrol_by_mnemonic(gateway, read_private(words), self.key_file(worker), clock=clock)
        except EnrolError as error:
            raise DevError(f"{worker}'s wallet could not be enrolled: {error}") from error

    def _words_file(self, worker: str) -> Path:
        return self._folder / f"{worker}.mnemonic"
