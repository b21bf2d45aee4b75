"""What one worker takes over from the others, and what it tells; pure, and in virtual time."""

from __future__ import annotations

import pytest

from batchyard import limits
from batchyard.dispatch import accounts, waiting
from batchyard.dispatch.accounts import Account, Accounts
from batchyard.dispatch.limiter import Limiter, Signal
from batchyard.dispatch.sharing import begin, scale
from batchyard.dispatch.waiting import Heard, Held, Retrying, Told


def sent(limiter: Limiter, seconds: float, begin_s: float = 0.0, at_once: int = 10_000) -> int:
    """Return how many calls a limiter lets out in so many seconds, each answered in 0.1 s."""
    flying: list[tuple[float, object]] = []
    count, now_s = 0, begin_s
    while now_s < begin_s + seconds:
        for each in [each for each in flying if each[0] <= now_s]:
            flying.remove(each)
            limiter.end(each[1], now_s, Signal.TAKEN)  # type: ignore[arg-type]
        while len(flying) < at_once and limiter.wait_s(now_s) <= 0.0:
            flying.append((now_s + 0.1, limiter.start(now_s)))
            count += 1
        now_s += 0.001
    for _, permit in flying:
        limiter.end(permit, now_s, Signal.TAKEN)  # type: ignore[arg-type]
    return count


def limited(rate: float, among: int = 1) -> Told:
    return Told(slots=64, rate=rate, window=64.0, among=among)


@pytest.mark.parametrize("known", [1, 3])
def test_a_newcomer_begins_with_its_part_of_the_rate_that_the_others_have_learned(
    known: int,
) -> None:
    others = [limited(100.0 / known, among=known)] * known
    limiter = Limiter(128)
    begin(limiter, others, known + 1, 0.0)
    expected = 100.0 / (known + 1)
    assert limiter.pace.rate == pytest.approx(expected)
    assert 0.9 * expected <= sent(limiter, 1.0) <= 1.1 * expected + 2


def test_a_newcomer_beside_workers_without_a_limit_begins_without_one() -> None:
    alone = Limiter(512)
    begin(alone, [], 1, 0.0)
    assert alone.window.size == limits.WINDOW_FIRST, "nobody knows anything: slow start"
    limiter = Limiter(512)
    begin(limiter, [Told(slots=256, window=512.0, among=2)] * 2, 3, 0.0)
    assert limiter.pace.rate is None
    assert limiter.window.wall is None
    assert limiter.window.size > 300
    one_of_three = [limited(10.0, 3), Told(window=512.0, among=3), Told(window=512.0, among=3)]
    limiter = Limiter(512)
    begin(limiter, one_of_three, 4, 0.0)
    assert limiter.pace.rate is None, "what one of three has met is no limit of all"


def test_a_concurrency_that_is_refused_is_divided_too() -> None:
    limiter = Limiter(512)
    begin(limiter, [Told(slots=256, window=40.0, wall=40, among=1)], 2, 0.0)
    assert (limiter.window.wall, limiter.window.size) == (20, 20.0)
    assert sent(limiter, 0.09) == 20
    scale(limiter, 2 / 1, 1.0)
    assert (limiter.window.wall, limiter.window.size) == (40, 40.0)


def test_workers_that_come_and_go_keep_the_sum_of_what_was_learned() -> None:
    one, two = Limiter(128), Limiter(128)
    one.pace.take_over(90.0, 0.0)
    scale(one, 1 / 2, 0.0)
    rate = one.pace.rate
    assert rate is not None
    begin(two, [Told(rate=rate, window=64.0, among=2)], 2, 0.0)
    assert two.pace.rate == pytest.approx(45.0)
    scale(one, 2 / 1, 1.0)
    assert one.pace.rate == pytest.approx(90.0)
    unlimited = Limiter(128)
    scale(unlimited, 2.0, 0.0)
    assert unlimited.pace.rate is None


def test_a_rate_that_was_taken_over_still_grows_when_the_upstream_allows_more() -> None:
    limiter = Limiter(512)
    begin(limiter, [limited(40.0)], 2, 0.0)
    before = sent(limiter, 2.0)
    sent(limiter, 56.0, begin_s=2.0)
    assert sent(limiter, 2.0, begin_s=58.0) > 3 * before


# Telling -----------------------------------------------------------------------------------------


def test_what_is_told_of_a_pool_survives_the_way_and_what_is_unknown_is_nothing() -> None:
    told = Told(
        slots=4,
        busy=2,
        held=(Held("limited", "slowly", None), Held("cooling_down", "x", 2.5)),
        parked={"b": 3},
        rate_max=1.5,
        window=8.0,
        among=2,
    )
    assert waiting.load(waiting.dump(told)) == told
    assert waiting.load(None) == waiting.load("{") == waiting.load('{"held":3}') == Told()


def test_reasons_of_several_workers_are_one_each_with_how_many_have_it() -> None:
    everywhere = Held("limited", "slowly", None)
    cooling = Held("cooling_down", "asked to wait", 10.0)
    heard = [
        Heard(Told(held=(everywhere, cooling), parked={"b": 2}), age_s=1.0),
        Heard(Told(held=(everywhere,), parked={"b": 1, "c": 9}), age_s=0.5),
    ]
    found = waiting.explain("up/m", heard, "b", 0, 100.0, unsent=9)
    assert [(w.reason, w.detail, w.until_s) for w in found] == [
        ("cooling_down", "asked to wait (in 1 of 2 workers)", 109.0),
        ("limited", "slowly", None),
        ("priming", "3 requests wait until their prompt prefix is in the cache", None),
    ]


def test_slots_of_all_workers_are_what_a_batch_is_behind() -> None:
    heard = [
        Heard(Told(slots=1, busy=2, flying={"b": 2})),
        Heard(Told(slots=2, busy=2, flying={"b": 1, "c": 1})),
    ]
    (behind,) = waiting.explain("up/m", heard, "b", 0, 0.0, unsent=7)  # the ledger knows it later
    assert behind.detail == "3 of 4 slots; the others work for other batches"
    alone = [Heard(Told(slots=1, busy=2)), Heard(Told(slots=2, busy=2))]
    (limited,) = waiting.explain("up/m", alone, "b", 3, 0.0, unsent=7)
    assert limited.detail == "all 4 slots are filled; 7 requests wait"
    assert waiting.explain("up/m", heard, "b", 3, 0.0, unsent=0) == []
    assert waiting.explain("up/m", [], "b", 0, 0.0, unsent=7) == []


def test_what_several_workers_tell_of_own_waits_and_shares_is_put_together() -> None:
    heard = [
        Heard(Told(slots=4, retrying={"b": Retrying(2, 50.0, 60.0, "500")}, capped={"b": 3}), 1.0),
        Heard(Told(slots=4, retrying={"b": Retrying(3, 10.0, 20.0, "429")}, capped={"b": 1}), 0.5),
        Heard(Told(slots=4, retrying={"c": Retrying(9, 1.0, 999.0, "429")})),
    ]
    assert [waiting.load(waiting.dump(each.told)) for each in heard] == [h.told for h in heard]
    found = waiting.explain("up/m", heard, "b", 4, 100.0, unsent=5)
    assert [(w.reason, w.detail, w.until_s, w.last_s) for w in found] == [
        ("limited", "its workspace fills the 4 slots that it may have (share_max)", None, None),
        ("retrying", "5 requests wait to be sent again (429)", 109.5, 159.0),
    ]


def test_a_pool_stands_still_only_where_each_worker_is_held_back_as_much() -> None:
    paused, away = Held("paused", "wrong key", 9.0), Held("breaker_open", "away", 9.0)
    cooling = Held("cooling_down", "asked to wait", 9.0)

    def everywhere(*held: Held) -> dict[str, bool]:
        heard = [Heard(Told(slots=4, held=(each,))) for each in held] + [Heard(Told(held=()))]
        found = waiting.explain("up/m", heard, "b", 0, 0.0, unsent=1)
        return {each.reason: each.is_everywhere for each in found}

    assert everywhere(paused, paused) == {"paused": True}, "one without slots does not count"
    assert everywhere(paused, away) == {"paused": False, "breaker_open": True}
    assert everywhere(away, cooling) == {"breaker_open": False, "cooling_down": True}


def test_the_rate_of_all_is_known_only_where_each_is() -> None:
    known, unknown = Heard(Told(slots=1, rate_max=2.0)), Heard(Told(slots=1))
    assert waiting.rate_max([known, known, Heard(Told(rate_max=9.0))]) == 4.0, "of those with slots"
    assert waiting.rate_max([known, unknown]) is None
    assert waiting.rate_max([]) is None


def filled(requests: int = 2) -> Account:
    account = Account(calls=9, repeated=requests)
    for number in range(requests):
        account.failed(f"id-{number}", 1, "HTTP 500", "m" * 500)
    account.over("id-0")
    return account


def test_accounts_of_several_workers_are_added_up() -> None:
    texts = [accounts.dump(filled()), accounts.dump(filled(3)), "not ours"]
    whole = accounts.merge(texts)
    assert whole is not None
    assert (whole.calls, whole.repeated, whole.reasons["HTTP 500"]) == (18, 5, 5)
    assert list(whole.failing) == ["id-0", "id-1", "id-2"]
    assert whole.failing["id-0"].is_over
    assert accounts.merge([]) is None


def test_of_a_request_that_fails_each_kind_of_reason_is_counted_up_to_a_bound() -> None:
    account = Account()
    for tries in range(1, 30):
        account.failed("a", tries, f"HTTP {500 + tries % 12}", "m")

    told = accounts.merge([accounts.dump(account)])

    assert told is not None
    assert told.failing["a"].reasons == {f"HTTP {500 + n}": 3 - (n > 5) for n in range(1, 9)}
    account.failed("a", 1, "HTTP 429", "m")
    assert account.failing["a"].reasons == {"HTTP 429": 1}, "it was taken up anew"


def test_an_account_is_told_with_the_own_one_and_what_was_in_flight_when_processes_ended() -> None:
    earlier, own = filled(), filled(3)
    earlier.unknown = 2
    whole = accounts.merge(["5", accounts.dump(earlier)], own)
    assert whole is not None
    assert (whole.calls, whole.repeated, whole.unknown) == (18, 5, 7)
    assert (own.calls, own.unknown) == (9, 0), "as it was"
    assert accounts.merge([], own) == own


def test_an_account_stays_small_whatever_fails() -> None:
    account = Account()
    for number in range(100):
        account.failed("é" * 60 + f"-{number}", 3, f"reason {number} " * 9, "\x00" * 500)
    text = accounts.dump(account)
    assert len(text) <= limits.ACCOUNT_CHARS_MAX
    whole = accounts.merge([text])
    assert whole is not None
    assert len(whole.reasons) == 12


def test_only_what_has_changed_and_is_held_or_failed_is_told() -> None:
    all_of_them = Accounts()
    all_of_them.of("held").calls += 1
    all_of_them.of("over").calls += 1
    all_of_them.of("failed").failed("x", 1, "HTTP 500", "m")
    assert set(all_of_them.news({"held"})) == {"held", "failed"}
    assert all_of_them.news({"held"}) == {}
    all_of_them.of("held").calls += 1
    assert set(all_of_them.news(set())) == {"held"}, "to its end"
    all_of_them.tell_again()
    assert set(all_of_them.news(set())) == {"failed"}


def test_what_is_counted_of_a_batch_that_is_worked_on_is_kept_however_many_come_after() -> None:
    all_of_them = Accounts()
    all_of_them.of("ended").calls += 7
    all_of_them.of("held").calls += 50_000
    for number in range(3_000):
        all_of_them.of(f"later-{number}").calls += 1
        if number % 100 == 0:
            all_of_them.news({"held", f"later-{number}"})
    all_of_them.of("held").calls += 1
    told = all_of_them.news({"held"})
    whole = accounts.merge([told["held"]])
    assert whole is not None
    assert whole.calls == 50_001
    assert all_of_them.find("ended") is None
    assert len(all_of_them._of) == 1_000
