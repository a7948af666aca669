"""Tenants: whose request it is, who gets how much, and that nobody floods the others."""

import hashlib
import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pars.errors import DataError, ParsError
from pars.scheduling.demand import Demand
from pars.scheduling.keys import EPOCH_S
from pars.scheduling.policies.fair_tenants import OTHERS, FairTenants
from pars.scheduling.policies.max_slowdown import MaxSlowdown
from pars.scheduling.policies.policy import Place, Policy
from pars.scheduling.policies.virtual_time import CREDIT_S, FIRST_RATE
from pars.scheduling.tenants import Tenants
from pars.serving.settings import Settings

START_S = EPOCH_S + 1e7
KEY = "sk-search"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
RATE = 1000.0  # work a second that the simulated engine does

Sent = tuple[float, str, float, float]  # arrival_s, tenant, true work, predicted work


def fair(ratio: float = 1.0, **weights: float) -> FairTenants:
    return FairTenants({OTHERS: 1e-6, **weights}, MaxSlowdown(ratio))


def placed(policy: FairTenants, tenant: str, work: float, arrival_s: float = 0.0) -> Place:
    return policy.for_tenant(tenant).place(Demand(work, work), START_S + arrival_s)


def seconds(keys: list[int]) -> list[float]:
    """Keys as seconds after the first of them."""
    return [(key - keys[0]) / 1e6 for key in keys]


def served(
    policies: list[FairTenants], requests: list[Sent], num_slots: int = 1
) -> list[tuple[float, float]]:
    """
    (begin_s, end_s) of each on an engine with slots behind one heap, each taking work / RATE.

    Request i comes by gateway i modulo their number.
    """
    heap: list[tuple[int, int]] = []
    running: list[tuple[float, int]] = []
    places: list[tuple[Policy, Place]] = []
    times = [(0.0, 0.0)] * len(requests)
    coming, now_s = 0, 0.0
    while coming < len(requests) or heap or running:
        next_s = min(
            requests[coming][0] if coming < len(requests) else math.inf,
            running[0][0] if running else math.inf,
        )
        now_s = max(now_s, next_s)
        while running and running[0][0] <= now_s:
            _, done = heapq.heappop(running)
            policy, place = places[done]
            policy.ended(place, START_S + now_s)
            policy.correct(place, requests[done][2])
        while coming < len(requests) and requests[coming][0] <= now_s:
            arrival_s, tenant, _, predicted = requests[coming]
            policy = policies[coming % len(policies)].for_tenant(tenant)
            place = policy.place(Demand(predicted, predicted), START_S + arrival_s)
            places.append((policy, place))
            heapq.heappush(heap, (place.key, coming))
            coming += 1
        while heap and len(running) < num_slots:
            _, chosen = heapq.heappop(heap)
            policy, place = places[chosen]
            policy.began(place)
            end_s = now_s + requests[chosen][2] * num_slots / RATE
            times[chosen] = (now_s, end_s)
            heapq.heappush(running, (end_s, chosen))
    return times


# Keys, by hand


def test_a_tenant_queues_behind_itself_and_not_behind_another() -> None:
    """
    Equal weights, work of 5,000 each: a tenant's next request starts 1 s of virtual time later
    (10,000 a second, half of them its own), and another's first one starts where the first did.
    """
    policy = fair(a=1, b=1)

    keys = [placed(policy, tenant, 5000.0).key for tenant in "aaab"]

    assert seconds(keys) == pytest.approx([0, 1, 2, 0], abs=1e-4)


def test_twice_the_weight_is_half_the_distance() -> None:
    """Weights 2 and 1, work of 1,000: 0.15 s and 0.3 s between two of one tenant."""
    policy = fair(a=2, b=1)

    keys = [placed(policy, tenant, 1000.0).key for tenant in ("a", "a", "a", "b", "b")]

    assert seconds(keys) == pytest.approx([0, 0.15, 0.3, 0, 0.3], abs=1e-4)


def test_who_comes_late_has_a_credit_and_no_more() -> None:
    """While a's 16th request is the first that waits, b starts fifteen seconds before it."""
    policy = fair(a=1, b=1)
    places = [placed(policy, "a", 10_000.0) for _ in range(20)]  # 2 s apart
    lane = policy.for_tenant("a")
    for place in places[:15]:
        lane.began(place)

    late = placed(policy, "b", 10_000.0)

    assert (places[15].key - late.key) / 1e6 == pytest.approx(CREDIT_S)
    assert policy.time.now_s == pytest.approx(places[15].key / 1e6)


def test_when_nobody_waits_the_key_is_the_arrival() -> None:
    """No debt outlives the queue, so that keys stay near those of first come, first served."""
    policy = fair(a=1)
    lane = policy.for_tenant("a")
    for place in [placed(policy, "a", 1e6) for _ in range(5)]:
        lane.began(place)

    later = placed(policy, "a", 1.0, arrival_s=3.0)

    assert later.key / 1e6 + EPOCH_S == pytest.approx(START_S + 3.0)


def test_the_truth_corrects_what_a_tenant_owes() -> None:
    """Expected 1,000 and 5,000 in truth: its next request starts 4,000 / (10,000 / 2) later."""
    policy = fair(a=1, b=1)
    lane, first = policy.for_tenant("a"), placed(policy, "a", 1000.0)
    placed(policy, "b", 1000.0)  # somebody waits, so that the clock goes on

    lane.began(first)
    lane.ended(first, START_S + 1)
    lane.correct(first, 5000.0)
    second = placed(policy, "a", 1000.0)

    assert (second.key - first.key) / 1e6 == pytest.approx(5000 / (FIRST_RATE / 2), abs=1e-4)


def test_who_leaves_before_the_engine_began_owes_nothing() -> None:
    """A client that gives up is not charged, and does not move the clock."""
    policy = fair(a=1, b=1)
    lane, first = policy.for_tenant("a"), placed(policy, "a", 5000.0)
    gone = placed(policy, "a", 5000.0)
    before_s = policy.time.now_s

    lane.ended(gone, START_S + 1)
    second = placed(policy, "a", 5000.0)

    assert seconds([first.key, second.key])[1] == pytest.approx(1.0, abs=1e-4)
    assert policy.time.now_s == before_s


def test_one_that_begins_out_of_turn_moves_the_clock_by_its_own_work_only() -> None:
    """
    A flood whose last request the engine begins at once (another model, an error with status 200)
    must not put everybody who comes later behind the flood.
    """
    policy = fair(a=1, b=1)
    flood = [placed(policy, "a", 5000.0) for _ in range(100)]  # 1 s apart: up to 99 s ahead
    before_s = policy.time.now_s

    policy.for_tenant("a").began(flood[-1])

    assert policy.time.now_s - before_s <= 2.001


def test_an_express_request_passes_its_own_tenant_and_nobody_else() -> None:
    """Its key is just before its tenant's first that waits, wherever the clock stands."""
    policy = fair(2.0, a=1, b=1)
    lane = policy.for_tenant("a")
    done = []
    for number in range(300):  # a's bucket fills, and its costs become known
        done.append(placed(policy, "a", 100.0 if number % 2 else 5000.0, 0.1 * number))
        lane.began(done[-1])
        lane.ended(done[-1], START_S + 0.1 * number + 0.05)
        lane.correct(done[-1], done[-1].work)
    waiting = [placed(policy, "a", 5000.0, 40.0) for _ in range(3)]
    others = placed(policy, "b", 5000.0, 40.0)

    express = placed(policy, "a", 10.0, 40.1)

    assert express.is_express
    assert others.key - 300_000 <= express.key < waiting[0].key


def test_nobody_starts_before_one_that_runs_where_the_engine_would_stop_it() -> None:
    """No key is below that of a request that has begun: neither a late tenant's nor an express."""
    policy = fair(2.0, a=1, b=1)
    for lane in policy.lanes.values():
        lane.is_preempting = True
    running = [placed(policy, "a", 5000.0) for _ in range(10)]
    for place in running[:5]:
        policy.for_tenant("a").began(place)

    others = [placed(policy, "b", 10.0), placed(policy, "a", 1.0)]
    for place in running[5:]:
        policy.for_tenant("a").began(place)
    others += [placed(policy, "b", 10.0, 0.5), placed(policy, "other", 1.0, 0.5)]

    assert min(it.key for it in others[:2]) >= running[4].key
    assert min(it.key for it in others[2:]) >= running[9].key
    assert not any(it.is_express for it in others)


def test_offsets_move_a_request_and_not_the_clock() -> None:
    """Ten seconds later than its start, as anywhere."""
    policy = fair(a=1, b=1)
    lane = policy.for_tenant("a")
    first = lane.place(Demand(10.0, 10.0), START_S)
    second = policy.for_tenant("b").place(Demand(10.0, 10.0), START_S, offset_s=10.0)

    assert second.key - first.key == 10_000_000


def test_keys_fit_into_32_bits() -> None:
    """In tenths of a second, as those of the other policies."""
    policy = FairTenants({"a": 1.0}, MaxSlowdown(1.5, bits=32), bits=32)
    keys = [placed(policy, "a", 1e9).key for _ in range(50)]

    assert keys == sorted(keys)
    assert all(-(2**31) < key < 2**31 for key in keys)


def test_what_nobody_knows_shares_one_lane() -> None:
    """Also where the policy is used as one without tenants."""
    policy = fair(a=1)

    assert policy.for_tenant("nobody") is policy.for_tenant(OTHERS) is policy.for_tenant(None)
    place = policy.place(Demand(1.0, 1.0), START_S)
    policy.began(place)
    policy.ended(place, START_S + 1)
    policy.correct(place, 2.0)
    assert policy.lanes[OTHERS].num_waiting == 0


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ParsError, match="that of a must be above 0"):
        FairTenants({"a": weight}, MaxSlowdown())


def test_a_refused_giant_is_no_work_that_a_tenant_was_given() -> None:
    """It never began, so its tenant's express bucket stays as deep as it was."""
    lane = FairTenants({"a": 1.0}, MaxSlowdown(1.5)).for_tenant("a")
    for second in range(60):
        place = lane.place(Demand(100.0, 100.0), EPOCH_S + 1e7 + second)
        lane.began(place)
        lane.ended(place, EPOCH_S + 1e7 + second + 0.5)
    before = lane._inside.capacity

    giant = lane.place(Demand(2e9, 2e9), EPOCH_S + 1e7 + 60)
    lane.ended(giant, EPOCH_S + 1e7 + 60.5)

    assert lane._inside.capacity <= 2 * before
    assert lane.num_waiting == lane._inside.num_waiting == 0


# Properties


PREDICTORS: dict[str, Callable[[random.Random, float], float]] = {
    "perfect": lambda chance, work: work,
    "noisy": lambda chance, work: work * math.exp(chance.gauss(0, 0.7)),
    "all the same": lambda chance, work: 50.0,
}


def flood(seed: int, guess: Callable[[random.Random, float], float]) -> list[Sent]:
    """Three tenants in bursts, all beyond their shares by the same: 120 requests each."""
    chance, requests = random.Random(seed), []
    for tenant, more in (("a", 1.0), ("b", 2.0), ("c", 5.0)):
        at_s = 0.0
        for _ in range(120):
            at_s += chance.expovariate(30.0 * more) * (0.2 if chance.random() < 0.8 else 4.0)
            work = min(math.exp(chance.gauss(4.0, 1.0)), 1000.0)
            requests.append((at_s, tenant, work, max(1.0, guess(chance, work))))
    return sorted(requests)


@pytest.mark.parametrize("predictor", ["perfect", "noisy"])
@pytest.mark.parametrize("num_slots", [1, 8])
@given(seed=st.integers(0, 10_000), weights=st.tuples(*[st.sampled_from([1.0, 2.0, 4.0])] * 3))
@settings(max_examples=8, derandomize=True, deadline=None)
def test_work_goes_by_weight_while_all_wait(
    predictor: str, num_slots: int, seed: int, weights: tuple[float, float, float]
) -> None:
    """
    From when all have requests waiting until the first has none, each gets work by its weight, but
    for a constant: the credit at the beginning, what is under way, and what was mispredicted.
    """
    requests = flood(seed, PREDICTORS[predictor])
    names = dict(zip("abc", weights, strict=True))
    times = served([fair(**names)], requests, num_slots)
    begin_s = max(min(at for at, who, *_ in requests if who == name) for name in names) + 1.0
    end_s = min(
        max(begin for (begin, _), (_, who, *_) in zip(times, requests, strict=True) if who == name)
        for name in names
    )
    got: Counter[str] = Counter()
    for (begin, _), (_, tenant, work, _) in zip(times, requests, strict=True):
        got[tenant] += work if begin_s <= begin < end_s else 0.0

    by_weight = [got[name] / weight for name, weight in names.items()]
    off = 0.0 if predictor == "perfect" else 0.35 * max(by_weight)
    assert max(by_weight) - min(by_weight) <= 4 * 1000.0 + off


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("num_gateways", [1, 2])
@pytest.mark.parametrize("ratio", [1.0, 1.5])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=3, derandomize=True, deadline=None, phases=[Phase.generate])
def test_a_flood_leaves_a_tenant_within_its_share_alone(
    ratio: float, num_gateways: int, predictor: str, seed: int
) -> None:
    """
    One sends a fifth of what the engine does, steadily; the other floods it at ten times its half.
    No request of the first waits longer than some that are under way or were let pass take.
    """
    chance, requests = random.Random(seed), []
    for _ in range(75):
        work = min(math.exp(chance.gauss(4.0, 0.5)), 400.0)
        guess = max(1.0, PREDICTORS[predictor](chance, work))
        requests.append((chance.uniform(0, 25), "good", work, guess))
    for _ in range(1500):
        work = min(math.exp(chance.gauss(4.0, 1.0)), 1000.0)
        guess = max(1.0, PREDICTORS[predictor](chance, work))
        requests.append((chance.uniform(0, 25), "flood", work, guess))
    requests.sort()
    policies = [fair(ratio, good=1, flood=1) for _ in range(num_gateways)]

    times = served(policies, requests)

    waits = sorted(
        begin - at
        for (begin, _), (at, tenant, *_) in zip(times, requests, strict=True)
        if tenant == "good"
    )
    assert waits[-1] <= 6.0  # the flood itself waits for minutes
    assert waits[len(waits) // 2] <= 1.0


def test_nothing_is_kept_of_requests_that_are_gone() -> None:
    """Two thousand that begin while one of them waits on and on: the queues stay short."""
    policy = fair(1.5, a=1, b=1)
    stays = placed(policy, "a", 100.0)
    for number in range(2_000):
        lane = policy.for_tenant("ab"[number % 2])
        place = lane.place(Demand(100.0, 100.0), START_S + number / 100)
        lane.began(place)
        lane.ended(place, START_S + number / 100)

    assert not stays.has_begun
    assert len(policy.time.waiting) <= 100


# The file


def written(folder: Path, text: str, name: str = "tenants.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_file_says_who_is_who(tmp_path: Path) -> None:
    """By key before the header; by the header only where it counts, once; else "other"."""
    tenants = Tenants.read(
        written(
            tmp_path,
            f"""
            header = "X-Tenant"
            [tenants.search]
            weight = 3
            keys = ["{DIGEST}"]
            [tenants.batch]
            values = ["batch", "nightly"]
            """,
        )
    )
    bearer = (b"authorization", b"Bearer " + KEY.encode())
    nightly = (b"x-tenant", b"nightly")

    assert tenants.weights == {"search": 3.0, "batch": 1.0}
    assert tenants.of([bearer]) == "search"
    assert tenants.of([(b"x-api-key", KEY.encode())]) == "search"
    assert tenants.of([nightly, bearer]) == "search"
    assert tenants.of([nightly]) == "batch"
    assert tenants.of([nightly], header_counts=False) == OTHERS
    assert tenants.of([nightly, (b"x-tenant", b"search")]) == OTHERS
    assert tenants.of([(b"authorization", b"Bearer sk-else")]) == OTHERS


def test_json_is_read_too(tmp_path: Path) -> None:
    """A tenant's own name is its value of the header, if no other is given."""
    text = '{"header": "X-Team", "tenants": {"search": {}}}'
    tenants = Tenants.read(written(tmp_path, text, "tenants.json"))

    assert tenants.of([(b"x-team", b"search")]) == "search"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tenants.a]\nweight = x\n", "is not TOML: Invalid value .at line 2"),
        ("", r"tenants: want at least one, as in \[tenants.search\]"),
        ("tenant = 1", "'tenant' is none of header, tenants"),
        (
            "[tenants.a]\nweigth = 1",
            "tenants.a.weigth: is no field of a tenant: did you mean weight",
        ),
        ("[tenants.a]\nweight = 0", "tenants.a.weight: must be a number from 1e-06"),
        ("[tenants.a]\nweight = true", "tenants.a.weight: must be a number"),
        ('[tenants.a]\nkeys = "x"', "tenants.a.keys: must be a list of texts"),
        ('[tenants.a]\nkeys = ["sk-secret"]', r"tenants.a.keys\[0\]: is no SHA-256"),
        (
            f'[tenants.a]\nkeys = ["{DIGEST}"]\n[tenants.b]\nkeys = ["{DIGEST}"]',
            r"tenants.b.keys\[0\]: is that of a too",
        ),
        ('[tenants.a]\nvalues = ["a"]', r"tenants.a.values\[0\]: wants a header"),
        ('header = "X Y"\n[tenants.a]', "header: want the name of a header, not 'X Y'"),
        ('header = "Authorization"\n[tenants.a]', "header: Authorization has a meaning"),
        ("tenants.a = 3", "tenants.a: want a table of weight, keys and values"),
    ],
)
def test_a_fault_of_the_file_is_named_with_its_place(
    tmp_path: Path, text: str, problem: str
) -> None:
    """The line of a syntax error, else the field; a key that stands there is not shown."""
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=problem) as caught:
        Tenants.read(path)

    assert str(caught.value).startswith(str(path))
    assert "sk-secret" not in str(caught.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    """The setting and the file are named."""
    with pytest.raises(ParsError, match=r"PARS_TENANTS: .*none.toml: cannot be read"):
        Settings.from_env({"PARS_TENANTS": str(tmp_path / "none.toml")})


def test_tenants_want_a_bound_in_shares(tmp_path: Path) -> None:
    """Seconds of overtaking know no tenants, and the error says what would be right."""
    path = written(tmp_path, "[tenants.a]")
    with pytest.raises(
        ParsError, match=r"PARS_TENANTS: .*want max_slowdown, and no max_overtake_s"
    ):
        Settings.from_env({"PARS_TENANTS": str(path), "PARS_MAX_OVERTAKE_S": "30"})

    policy = Settings(tenants=str(path), max_slowdown=1.5).policy()
    assert isinstance(policy, FairTenants)
    assert policy.in_words == (
        "2 tenants by weight; inside each at most 1.5 times the wait of first come, first served"
    )
