import numpy as np
import pytest
import torch
from gymnasium import spaces

from ssm_metarl_gym.agents.ssm.sequences import DictSequenceRolloutBuffer, SequenceRolloutBuffer

NUM_STEPS, NUM_ENVS = 4, 5
BOX = spaces.Box(-1e3, 1e3, (2,))
DICT = spaces.Dict({"where": BOX, "what": spaces.Discrete(1000)})
GRID = np.arange(NUM_STEPS)[:, None] + 10.0 * np.arange(NUM_ENVS)  # T n: says which step of which environment
STARTS = np.random.default_rng(0).random((NUM_STEPS, NUM_ENVS)) < 0.4  # T n
OFFSETS = {"actions": 100.0, "old_values": 200.0, "old_log_prob": 300.0}


@pytest.fixture(autouse=True)
def _seed_numpy():
    np.random.seed(0)  # noqa: NPY002


def fill(buffer):
    """A rollout in which every number says its step and its environment."""
    buffer.reset()
    buffer.states = torch.arange(float(NUM_ENVS))[:, None, None, None].expand(-1, 2, 2, 3)
    for cells, starts in zip(GRID, STARTS, strict=True):
        observation = np.stack([cells, -cells], axis=1)
        if isinstance(buffer.observation_space, spaces.Dict):
            observation = {"where": observation, "what": cells.astype(int)}
        action, value, log_prob = (cells + offset for offset in OFFSETS.values())
        tensors = (torch.tensor(column, dtype=torch.float32) for column in (value, log_prob))
        buffer.add(observation, action[:, None], cells, starts, *tensors)
    buffer.compute_returns_and_advantage(torch.ones(NUM_ENVS), np.zeros(NUM_ENVS, dtype=bool))
    return buffer


def filled(space=BOX, num_envs=NUM_ENVS):
    kind = DictSequenceRolloutBuffer if isinstance(space, spaces.Dict) else SequenceRolloutBuffer
    actions = spaces.Box(-1e3, 1e3, (1,))
    return fill(kind(NUM_STEPS, space, actions, device="cpu", gae_lambda=0.9, gamma=0.8, n_envs=num_envs))


def cells_of(samples):
    """Which cells of the grid the observations of a minibatch are, ``[B T]``."""
    observations = samples.observations.observations
    where = observations["where"] if isinstance(observations, dict) else observations
    assert torch.equal(where[:, 1], -where[:, 0])
    return where[:, 0].numpy().reshape(samples.observations.start.shape)


def environments_of(samples):
    return (cells_of(samples)[:, 0] // 10).astype(int)


@pytest.mark.parametrize("space", [BOX, DICT], ids=["Box", "Dict"])
class TestMinibatches:
    @pytest.mark.parametrize("num_rows", [1, 2, 5, 7, None])
    def test_are_whole_rows_and_every_row_comes_once_an_epoch(self, space, num_rows):
        buffer = filled(space)
        for _ in range(3):
            batches = [cells_of(samples) for samples in buffer.get(num_rows and num_rows * NUM_STEPS)]
            most = min(num_rows or NUM_ENVS, NUM_ENVS)
            assert [len(rows) for rows in batches[:-1]] == [most] * (len(batches) - 1)
            assert 1 <= len(batches[-1]) <= most
            rows = np.concatenate(batches)
            np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], GRID.T)

    @pytest.mark.parametrize("num_rows", [2, None])
    def test_everything_of_a_step_lies_in_the_same_place(self, space, num_rows):
        buffer = filled(space)
        # SB3 lays them out anew when samples are first asked for.
        learned = {name: getattr(buffer, name).copy() for name in ("advantages", "returns")}
        for _ in range(2):
            for samples in buffer.get(num_rows and num_rows * NUM_STEPS):
                cells, rows = cells_of(samples).ravel(), environments_of(samples)
                for name, offset in OFFSETS.items():
                    np.testing.assert_array_equal(getattr(samples, name).flatten(), cells + offset)
                if isinstance(space, spaces.Dict):
                    np.testing.assert_array_equal(samples.observations.observations["what"].flatten(), cells)
                for name, column in learned.items():
                    np.testing.assert_array_equal(getattr(samples, name), column[:, rows].T.ravel())

    def test_know_the_starts_of_episodes_and_the_states_before_their_first_steps(self, space):
        for samples in filled(space).get(2 * NUM_STEPS):
            rows, sequences = environments_of(samples), samples.observations
            assert sequences.start.dtype == torch.bool
            np.testing.assert_array_equal(sequences.start, STARTS[:, rows].T)
            assert sequences.state.shape == (len(rows), 2, 2, 3)
            np.testing.assert_array_equal(sequences.state[:, 0, 0, 0], rows)

    def test_are_of_the_last_rollout(self, space):
        buffer = filled(space)
        list(buffer.get(NUM_STEPS))
        rows = np.concatenate([cells_of(samples) for samples in fill(buffer).get(NUM_STEPS)])
        np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], GRID.T)


def test_advantages_are_hand_computed_ones():
    """A_t = delta_t + gamma lambda A_tp1 within an episode; the second one starts at step 2."""
    buffer = SequenceRolloutBuffer(3, BOX, spaces.Discrete(2), device="cpu", gae_lambda=0.5, gamma=0.5)
    buffer.states = torch.zeros(1, 1, 2, 1)
    for reward, start, value in [(1.0, True, 2.0), (3.0, False, 4.0), (5.0, True, 6.0)]:
        buffer.add(
            np.zeros((1, 2)), np.zeros((1, 1)), np.array([reward]), np.array([start]), *torch.tensor([[value]] * 2)
        )
    buffer.compute_returns_and_advantage(torch.tensor([8.0]), np.array([False]))
    (samples,) = buffer.get()
    # delta: 1 + .5 * 4 - 2 = 1, then 3 - 4 = -1 at the end of an episode, then 5 + .5 * 8 - 6 = 3.
    assert samples.advantages.tolist() == [1.0 + 0.25 * -1.0, -1.0, 3.0]
    assert samples.returns.tolist() == [2.75, 3.0, 9.0]
    assert samples.observations.start.tolist() == [[True, False, True]]


def test_numpys_global_generator_shuffles_the_rows():
    def order(seed):
        buffer = filled()
        np.random.seed(seed)  # noqa: NPY002
        return [environments_of(samples).tolist() for _ in range(3) for samples in buffer.get(2 * NUM_STEPS)]

    first = order(1)
    assert order(1) == first
    assert order(2) != first
    assert first[:3] != first[3:6]  # another order in every epoch


def test_a_minibatch_holds_one_row_at_least():
    assert [environments_of(samples).size for samples in filled().get(1)] == [1] * NUM_ENVS


def test_minibatches_do_not_share_memory_with_the_buffer():
    buffer = filled()
    for samples in buffer.get(NUM_STEPS):
        for tensor in (samples.actions, samples.observations.observations, samples.observations.state):
            tensor.fill_(7.0)
    for samples in buffer.get(NUM_STEPS):
        assert (samples.actions >= OFFSETS["actions"]).all()
        assert cells_of(samples).shape == (1, NUM_STEPS)


def test_a_buffer_that_is_not_full_has_no_minibatches():
    buffer = filled()
    buffer.reset()
    with pytest.raises(AssertionError):
        next(buffer.get(NUM_STEPS))
