import threading

import pytest
import torch
from torch import nn
from torch.distributions import Beta, Categorical
from torch.nn import functional as F

from ssm_metarl_gym.agents.adaptation.draws import DrawsApart, PrivateDraws

DRAWS = {
    "randn": lambda: torch.randn(3),
    "rand": lambda: torch.rand(2, 2),
    "randint": lambda: torch.randint(5, (4,)),
    "randperm": lambda: torch.randperm(5),
    "randn_like": lambda: torch.randn_like(torch.ones(3)),
    "rand_like": lambda: torch.rand_like(torch.ones(3)),
    "normal": lambda: torch.normal(0.0, 1.0, (3,)),
    "normal_": lambda: torch.empty(20).normal_(),
    "uniform_": lambda: torch.empty(3).uniform_(),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(4), 2),
    "dropout": lambda: F.dropout(torch.ones(9), 0.5, training=True),
    "native_dropout": lambda: torch.native_dropout(torch.ones(9), 0.5, True)[0],
    "rrelu": lambda: F.rrelu(-torch.ones(4), training=True),
    "Categorical": lambda: Categorical(torch.ones(3)).sample((5,)),
    "Beta": lambda: Beta(torch.ones(2), torch.ones(2)).sample(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_are_those_of_the_global_stream_which_stays(draw, untouched_rng):
    torch.rand(1)
    state = torch.get_rng_state()
    expected = [draw() for _ in range(3)]
    torch.set_rng_state(state)
    with untouched_rng(), PrivateDraws() as draws:
        drawn = [draw() for _ in range(3)]
    assert draws.drew
    for one, other in zip(drawn, expected, strict=True):
        assert torch.equal(one, other)


def test_what_could_draw_but_does_not_is_no_draw():
    attention, network = nn.MultiheadAttention(8, 2).eval(), nn.LSTM(3, 4)
    queries, keys = torch.ones(2, 1, 2, 4, 8)
    with PrivateDraws() as draws:
        attention(*torch.ones(3, 4, 1, 8))
        network(torch.ones(2, 1, 3))
        F.scaled_dot_product_attention(queries, keys, keys)
        F.dropout(torch.ones(3), 0.5, training=False)
    assert not draws.drew


def test_a_generator_of_one_s_own_is_used():
    expected = torch.rand(3, generator=torch.Generator().manual_seed(3))
    with PrivateDraws() as draws:
        assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(3)), expected)
    assert not draws.drew


@pytest.fixture
def company():
    """A thread beside this one, which does nothing."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_alone_the_streams_are_put_back(untouched_rng):
    apart = DrawsApart([])
    expected = torch.rand(3), torch.rand(3)
    for _ in range(2):
        torch.manual_seed(0)
        with untouched_rng():
            with apart.begin():
                assert torch.equal(torch.rand(3), expected[0])
                assert torch.equal(torch.rand(3), expected[1])
            apart.end()


@pytest.mark.usefixtures("company")
def test_in_company_the_draws_are_the_same(untouched_rng):
    apart = DrawsApart([])
    expected = torch.rand(3), torch.rand(3)
    torch.manual_seed(0)
    for _ in range(2):
        with untouched_rng():
            with apart.begin():
                assert torch.equal(torch.rand(3), expected[0])
                assert torch.equal(torch.rand(3), expected[1])
            apart.end()


@pytest.mark.parametrize("draw", [lambda: torch.randn(10), lambda: torch.ones(10).sum()], ids=["drawing", "not"])
def test_another_thread_draws_on_undisturbed(draw):
    torch.manual_seed(1)
    expected = torch.cat([torch.rand(1) for _ in range(2000)])
    stop, apart = threading.Event(), DrawsApart([])

    def draw_apart():
        while not stop.is_set():
            with apart.begin():
                draw()
            apart.end()

    thread = threading.Thread(target=draw_apart)
    torch.manual_seed(1)
    thread.start()
    try:
        assert torch.equal(torch.cat([torch.rand(1) for _ in range(2000)]), expected)
    finally:
        stop.set()
        thread.join()


def test_two_threads_may_draw_apart_at_once():
    def draw_apart(seed, results):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            with PrivateDraws():
                results.append(torch.rand(2, generator=generator))
                torch.rand(2)

    results = [], []
    threads = [threading.Thread(target=draw_apart, args=(seed, results[seed])) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, drawn in enumerate(results):
        generator = torch.Generator().manual_seed(seed)
        assert all(torch.equal(torch.rand(2, generator=generator), each) for each in drawn)
