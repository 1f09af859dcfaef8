"""The arithmetic of covers: nothing is dispatched beyond what is on record, and nothing uncounted meanwhile."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.covers import Cover, endless_cover


def a_cover(granted_nano: int = 100) -> Cover:
    cover = Cover(b"\x01" * 32, uuid.UUID(int=1))
    cover.answered(cover.claim(0.0), granted_nano, renews_at=10.0, ends_at=27.0)
    return cover


def test_a_new_cover_has_nothing_and_is_due() -> None:
    cover = Cover(b"\x01" * 32, uuid.UUID(int=1))

    assert (cover.room_nano(0.0), cover.is_due(0.0)) == (0, True)


def test_room_is_what_was_granted_less_what_is_used_until_the_end() -> None:
    cover = a_cover()
    cover.take(60)

    assert [cover.room_nano(now) for now in (0.0, 26.9, 27.0)] == [40, 40, 0]
    assert a_cover().is_due(9.9) is False


def test_what_was_wanted_is_asked_for_once() -> None:
    cover = a_cover()
    cover.take(30)
    cover.take(20)
    cover.miss(70)
    claim = cover.claim(1.0)

    assert (claim.used_nano, claim.kept_nano, claim.wanted_nano) == (50, 100, 70)
    assert cover.claim(1.0).wanted_nano == 0


def test_after_a_want_the_store_is_asked_again_so_that_what_was_too_much_comes_back() -> None:
    cover = a_cover()
    cover.miss(70)
    cover.answered(cover.claim(1.0), 170, renews_at=11.0, ends_at=28.0)
    assert cover.is_due(1.0)
    cover.answered(cover.claim(2.0), 20, renews_at=12.0, ends_at=29.0)

    assert not cover.is_due(2.0)


def test_what_is_booked_while_a_claim_is_under_way_may_be_missing_in_its_answer() -> None:
    cover = a_cover()
    cover.take(80)
    claim = cover.claim(1.0)
    cover.put_back(80, 50)
    # The store had not heard of the 50 when it granted what was used and 20 more.
    cover.answered(claim, 100, renews_at=11.0, ends_at=28.0)

    assert cover.room_nano(1.0) == 50


def test_what_was_booked_before_a_claim_is_in_its_answer() -> None:
    cover = a_cover()
    cover.take(80)
    cover.put_back(80, 50)
    assert cover.room_nano(0.0) == 50
    cover.answered(cover.claim(1.0), 50, renews_at=11.0, ends_at=28.0)

    assert cover.room_nano(1.0) == 50


def test_an_answer_below_what_is_used_leaves_no_room_and_takes_nothing_away() -> None:
    cover = a_cover()
    claim = cover.claim(1.0)
    cover.take(90)
    cover.answered(claim, 30, renews_at=11.0, ends_at=28.0)

    assert (cover.room_nano(1.0), cover.granted_nano) == (0, 90)


def test_after_its_end_only_what_is_used_is_kept() -> None:
    cover = a_cover()
    cover.take(30)

    assert cover.claim(26.0).kept_nano == 100
    assert cover.claim(27.0).kept_nano == 30


def test_a_smaller_stake_takes_back_what_is_not_used_and_is_claimed_at_once() -> None:
    cover = a_cover()
    cover.take(30)
    cover.bound(100)
    assert cover.granted_nano == 100
    cover.bound(50)
    assert (cover.room_nano(0.0), cover.is_due(0.0)) == (20, True)
    cover.bound(0)

    assert (cover.room_nano(0.0), cover.used_nano) == (0, 30)


def test_nobody_earns_more_than_the_tickets_most() -> None:
    cover = a_cover()
    cover.take(30)
    with pytest.raises(AssertionError):
        cover.put_back(30, 31)


def test_an_upstream_is_never_short() -> None:
    cover = endless_cover(uuid.UUID(int=1))
    cover.take(10**15)

    assert cover.room_nano(1e12) > 10**15


@given(st.lists(st.tuples(st.sampled_from(["take", "back", "claim", "answer", "bound"]), st.integers(0, 50))))
def test_room_is_never_negative_nor_more_than_is_on_record(steps: list[tuple[str, int]]) -> None:
    cover, flying, recorded, claim = a_cover(), list[int](), 100, None
    for step, nano in steps:
        match step:
            case "take" if nano <= cover.room_nano(1.0):
                cover.take(nano)
                flying.append(nano)
            case "back" if flying:
                taken = flying.pop()
                cover.put_back(taken, min(nano, taken))
            case "claim":
                claim = cover.claim(1.0)
                recorded = max(recorded, claim.kept_nano)
            case "answer" if claim is not None:
                granted = claim.used_nano + nano
                recorded = max(granted, claim.kept_nano)
                cover.answered(claim, granted, renews_at=11.0, ends_at=28.0)
                claim = None
            case "bound":
                cover.bound(nano)
            case _:
                pass
        assert cover.used_nano == sum(flying)
        assert cover.used_nano <= cover.granted_nano <= recorded
