"""How long a gateway takes to judge one statement: TDX alone, and TDX with a GPU. Simulated hardware, real verifier.

The verifier's path is the one for real evidence: the quote against collateral, the event log, the GPU's report and
chain, and two signed reference manifests. Printed are milliseconds of one judgement on one core.
"""

import datetime as dt
import statistics
import sys
import time

from attestation.evidence import Endorsements, Evidence
from attestation.judge import judge
from tests.attested import machine, scene

ROUNDS = 200
TARGET_MS = 15.0


def measure(gpus: int) -> tuple[float, float, int, int]:
    """Median and 99th percentile in ms, from carried bytes to verdict; bytes of evidence and endorsements."""
    one = scene(machine(gpus=gpus))
    evidence, endorsements = one.evidence.encode(), one.endorsements.encode()
    taken: list[float] = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        verdict = judge(Evidence.decode(evidence), Endorsements.decode(endorsements), one.policy, one.question)
        taken.append((time.perf_counter() - begun) * 1000)
        assert verdict.accepted, verdict.in_words()
    return statistics.median(taken), statistics.quantiles(taken, n=100)[98], len(evidence), len(endorsements)


def main() -> None:
    print(f"{dt.datetime.now(dt.UTC):%Y-%m-%d}  {ROUNDS} judgements each, one core")
    worst = 0.0
    for name, gpus in (("TDX", 0), ("TDX + 1 GPU", 1), ("TDX + 8 GPUs", 8)):
        median, p99, evidence, endorsements = measure(gpus)
        print(f"{name:13} {median:6.2f} ms  p99 {p99:6.2f} ms  evidence {evidence} B, endorsements {endorsements} B")
        worst = median if gpus == 1 else worst
    print(f"target for TDX + 1 GPU: {TARGET_MS} ms: {'met' if worst <= TARGET_MS else 'MISSED'}")
    sys.exit(worst > TARGET_MS)


if __name__ == "__main__":
    main()
