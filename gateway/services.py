"""Everything a handler may reach: built once per process by `gateway.app`, handed to handlers by name."""

import asyncio

from audit.postgres.reader import LogReader
from billing.leases import LeasedLedger
from billing.postgres.account import Accounts
from billing.postgres.pool import Pool
from cocoon.checkpoints import NoteVerifier
from cocoon.clock import Clock
from gateway.attestor import Attestor
from gateway.auth import KeyTable
from gateway.beacons import Beacons
from gateway.escrows import EscrowDesk
from gateway.evidence_desk import EvidenceDesk
from gateway.limiter import SlicedLimiter
from gateway.pipeline import Pipeline
from gateway.prices import Prices
from gateway.receipts import ReceiptDesk
from gateway.settings import Settings
from gateway.settle import Settler
from gateway.signing import BatchSigner
from gateway.wallet_keys import WalletDoor
from workers.postgres.attestations import AttestationStore
from workers.postgres.enrolments import EnrolmentStore
from workers.redis.heartbeats import HeartbeatBus
from workers.registry import Registry
from workers.tokens import WorkerTokens


class Services:
    """One process's parts; plain attributes, no behaviour."""

    def __init__(
        self, *, settings: Settings, clock: Clock, keys: KeyTable, prices: Prices, ledger: LeasedLedger,
        accounts: Accounts, registry: Registry, enrolments: EnrolmentStore, heartbeats: HeartbeatBus,
        tokens: WorkerTokens, settler: Settler, limiter: SlicedLimiter, pipeline: Pipeline, receipts: ReceiptDesk,
        signer: BatchSigner, pool: Pool, wallets: WalletDoor, attestor: Attestor, attestations: AttestationStore,
        log_reader: LogReader, log_verifier: NoteVerifier, desk: EvidenceDesk,
        escrows: EscrowDesk, beacons: Beacons,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.clock = clock
        self.keys = keys
        self.prices = prices
        self.ledger = ledger
        self.accounts = accounts
        self.registry = registry
        self.enrolments = enrolments
        self.heartbeats = heartbeats
        self.tokens = tokens
        self.settler = settler
        self.limiter = limiter
        self.pipeline = pipeline
        self.receipts = receipts
        self.signer = signer
        self.pool = pool
        self.log_reader = log_reader
        self.log_verifier = log_verifier
        self.wallets = wallets
        self.attestor = attestor
        self.attestations = attestations
        self.desk = desk
        self.escrows = escrows
        self.beacons = beacons
        self.stopping = asyncio.Event()
