"""What sealing costs: a request and its opening, an answer's beginning, and each frame, in processor time of one core.

The targets are 600 us for a request on both sides together, and 4 us for a frame on either side.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from cocoon.clock import SystemClock, system_random
from cocoon.ids import new_job_id
from cocoon.sealed import Recipient, SealedKey, SentRequest, Terms, key_tag, open_request, parse_request, seal_request
from cocoon.sealed_answer import AnswerOpener, AnswerSealer

BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"word " * 180 + b'"}],"max_tokens":64,"stream":true}'
FRAME = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
TERMS = Terms(
    job_id=new_job_id(SystemClock(), system_random()).bytes, key_tag=key_tag("sk-cocoon-benchmark"), model="m",
    max_prompt=1024, max_completion=64, n=1, stream=True, not_after=2**40,
)  # fmt: skip
ROUNDS = 7


class Cost(NamedTuple):
    """Microseconds for one, the median of `ROUNDS` rounds, and the best of them."""

    median: float
    best: float

    def __str__(self) -> str:
        return f"{self.median:8.1f} us   (best round {self.best:.1f})"


def measure(work: Callable[[], object], count: int) -> Cost:
    """The cost of one call of `work`."""
    rounds: list[float] = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(count):
            work()
        rounds.append((time.process_time() - began) / count * 1e6)
    return Cost(statistics.median(rounds), min(rounds))


def request_costs(recipients: int, count: int) -> tuple[Cost, Cost, Cost]:
    """Sealing for so many recipients, the gateway's reading, and one worker's opening (both parse)."""
    keys = [SealedKey.generate() for _ in range(recipients)]
    named = [Recipient(bytes((number,)) * 32, key.public_key) for number, key in enumerate(keys)]
    sent = seal_request(TERMS, BODY, named, os.urandom)
    return (
        measure(lambda: seal_request(TERMS, BODY, named, os.urandom), count),
        measure(lambda: parse_request(sent.raw), count),
        measure(lambda: open_request(parse_request(sent.raw), named[0].keyset_digest, keys[0]), count),
    )


def frame_costs(count: int) -> tuple[Cost, Cost]:
    """Sealing and opening a frame of one token's event: 256 bytes padded."""
    sent, sealer = _answer()
    frames = [sealer.prelude, *(sealer.frame(FRAME) for _ in range(count * ROUNDS))]
    opener = AnswerOpener(digest=sent.digest, secrets=sent.secrets)
    opener.feed(frames[0])
    waiting = iter(frames[1:])
    _, fresh = _answer()
    return measure(lambda: fresh.frame(FRAME), count), measure(lambda: opener.feed(next(waiting)), count)


def _answer() -> tuple[SentRequest, AnswerSealer]:
    digest = bytes(32)
    key = SealedKey.generate()
    sent = seal_request(TERMS, BODY, [Recipient(digest, key.public_key)], os.urandom)
    opened = open_request(parse_request(sent.raw), digest, key)
    return sent, AnswerSealer(digest=opened.digest, keyset_digest=digest, secret=opened.secret, random=os.urandom(32))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="calls in a round")
    count = parser.parse_args().count
    lines: list[str] = []
    for recipients in (1, 3, 8):
        seal, parse, opened = request_costs(recipients, count)
        lines += [
            f"{recipients} recipient{'s' if recipients > 1 else ' '}  seal                {seal}",
            f"              gateway reads       {parse}",
            f"              worker opens        {opened}",
            f"              seal and open       {seal.median + opened.median:8.1f} us",
        ]
    sealed, opened = frame_costs(count * 10)
    lines += [f"frame         seal                {sealed}", f"              open                {opened}"]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
