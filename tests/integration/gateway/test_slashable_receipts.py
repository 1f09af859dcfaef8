"""What a staked worker signs and may not, through the door that agents deliver receipts at."""

import msgspec

from cocoon.cells import read_boc
from cocoon.clock import SystemClock
from cocoon.contracts.judge import Accused, judge
from cocoon.contracts.stake import EvidenceKind
from cocoon.enrolment import ENROL_PATH, EnrolAnswer, ServedModel
from cocoon.receipt_batch import RECEIPTS_PATH
from cocoon.usage import TokenUsage
from gateway.signing import development_key
from tests.fixtures_gateway import MODEL, NETWORK_SECRET, Stack
from tests.receipt_values import Signer
from tests.stake_values import GLOBAL_ID, STAKED, a_staked_key
from tests.unit.workers.worker_values import a_request

SECRET = bytes.fromhex(NETWORK_SECRET)
KINDS = {"equivocation": EvidenceKind.EQUIVOCATION, "over_use": EvidenceKind.OVER_USE}


async def test_evidence_is_kept_before_the_delivery_is_answered(gateway: Stack) -> None:
    operator_key = development_key(SECRET, global_id=GLOBAL_ID, clock=SystemClock()).operator_key
    staked = a_staked_key(operator_key=operator_key)
    agent = Signer(secret=SECRET, staked=staked, global_id=GLOBAL_ID)
    enrolment = a_request(
        SystemClock(), agent.keyset, url="https://127.0.0.1:1", stake=staked.config,
        models=(ServedModel(id=MODEL, context_tokens=2048),),
    )  # fmt: skip
    async with gateway.client(gateway.worker_key) as client:
        answer = await client.post(ENROL_PATH, content=msgspec.json.encode(enrolment))
        assert answer.status_code == 200, answer.text
        enrolled = msgspec.json.decode(answer.content, type=EnrolAnswer)
        agent.worker_id = enrolled.worker_id
        nothing = agent.ticket(max_prompt=0, max_completion=0)
        receipts = [
            agent.delivered(ticket, gateway.customer_id, TokenUsage(prompt=prompt), head={"seq": seq})
            for ticket, prompt, seq in ((agent.ticket(), 0, 7), (agent.ticket(), 0, 7), (nothing, 1, 8))
        ]
        delivered = await client.post(
            RECEIPTS_PATH, content=msgspec.json.encode(agent.batch(*receipts)),
            headers={"authorization": f"Bearer {enrolled.token}"},
        )  # fmt: skip
        assert delivered.status_code == 200, delivered.text
    rows = await gateway.rows("SELECT stake, worker_id, kind, evidence FROM slash_evidence ORDER BY kind")

    accused = Accused(
        global_id=GLOBAL_ID, stake=staked.address.account, staked_key=STAKED.public_key().public_bytes_raw(),
        operator_key=operator_key,
    )  # fmt: skip
    assert [row["kind"] for row in rows] == list(KINDS)
    assert {(row["stake"], row["worker_id"]) for row in rows} == {(str(staked.address), enrolled.worker_id)}
    assert [judge(KINDS[row["kind"]], read_boc(row["evidence"]), accused) for row in rows] == [None, None]
