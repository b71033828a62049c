"""The extractor alone, and in every algorithm of Stable-Baselines3 and sb3-contrib that takes one."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, TransformObservation
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.ars.policies import ARSPolicy
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import SSM, SSMFeaturesExtractor
from ssm_metarl_gym.wrappers import HistoryWindow

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
# Of so many rectified features of an image, some are always positive: none of the weights before them is ever idle.
SMALL = {"features_dim": 5, "hidden_dim": 8, "num_layers": 1, "cnn_output_dim": 32}

FLAT = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)


def window_space(length, width=3):
    low, high = np.full((length, width + 1), -np.inf), np.full((length, width + 1), np.inf)
    low[:, -1], high[:, -1] = 0.0, 1.0
    return spaces.Box(low, high, dtype=np.float64)


def sample(space, batch_size=4, seed=0):
    """Random observations of a space, as a policy hands them to its extractor."""
    space.seed(seed)
    rows = [space.sample() for _ in range(batch_size)]
    if isinstance(space, spaces.Dict):
        batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in space.spaces}
    else:
        batch = torch.from_numpy(np.stack(rows))
    return preprocess_obs(batch, space)


def gradients(extractor, observations):
    extractor.zero_grad()
    extractor(observations).square().sum().backward()
    return {name: parameter.grad for name, parameter in extractor.named_parameters()}


class TestWindows:
    def test_a_normalised_start_mask_is_still_read(self):
        """Padding in windows that VecNormalize rescaled, mask and all, is as invisible as in others."""
        env = VecNormalize(DummyVecEnv([lambda: HistoryWindow(gym.make("CartPole-v1"), 8)] * 2))
        env.seed(0)
        extractor = SSMFeaturesExtractor(env.observation_space, features_dim=5, hidden_dim=8)
        windows, lengths = torch.from_numpy(env.reset()), set()
        for _ in range(20):
            originals = torch.from_numpy(env.get_original_obs())
            assert not torch.equal(windows[..., -1], originals[..., -1])
            for window, original, features in zip(windows, originals, extractor(windows), strict=True):
                # The last start is where the episode begins; a window without one is full.
                begin = max(7 - int((original[:, -1] == 0.0).sum()), 0)
                torch.testing.assert_close(extractor.parts[0].ssm(window[None, begin:, :-1])[0, -1], features)
                lengths.add(8 - begin)
            windows = torch.from_numpy(env.step(np.arange(2))[0])
        assert lengths == set(range(1, 9))

    @pytest.mark.parametrize("padding", [0.0, 1e3, float("nan"), float("inf")])
    def test_padding_changes_neither_the_features_nor_the_gradients(self, padding):
        """The first steps of an episode in a window of 16, with whatever padding, against a window of their length."""
        extractor = SSMFeaturesExtractor(window_space(16), features_dim=5, hidden_dim=8)
        episode = torch.randn(2, 16, 3)
        for num_steps in (1, 2, 7, 16):
            start = torch.ones(2, 16, 1)
            start[:, 16 - num_steps + 1 :] = 0.0
            rows = torch.cat([torch.full((2, 16 - num_steps, 3), padding), episode[:, :num_steps]], dim=1)
            padded = torch.cat([rows, start], dim=2)
            exact = extractor.parts[0].ssm.scan(episode[:, :num_steps])[0][:, -1]
            torch.testing.assert_close(extractor(padded), exact)
            torch.testing.assert_close(gradients(extractor, padded), gradients(extractor, padded[:, 16 - num_steps :]))

    def test_rows_of_a_batch_start_at_their_own_step(self):
        extractor = SSMFeaturesExtractor(window_space(6), features_dim=5, hidden_dim=8)
        windows = torch.randn(3, 6, 4)
        windows[..., -1] = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]])
        for window, start in zip(windows, (5, 1, 4), strict=True):
            window[:start, :-1] = float("nan")
        alone = torch.cat([extractor(window[None]) for window in windows])
        assert alone.isfinite().all()
        torch.testing.assert_close(extractor(windows), alone)

    def test_a_window_without_a_start_is_read_from_its_first_row(self):
        extractor = SSMFeaturesExtractor(window_space(6), features_dim=5, hidden_dim=8)
        window = torch.randn(1, 6, 4)
        window[..., -1] = 0.0
        torch.testing.assert_close(extractor(window), extractor.parts[0].ssm(window[..., :-1])[:, -1])

    def test_windows_of_an_environment_give_the_features_of_its_episode(self):
        extractor = SSMFeaturesExtractor(window_space(4, 4), features_dim=5, hidden_dim=8)
        narrow, wide = (HistoryWindow(gym.make(ENV_ID), length) for length in (4, 9))
        windows = [[env.reset(seed=0)[0]] + [env.step(t % 2)[0] for t in range(8)] for env in (narrow, wide)]
        for t, (short, long) in enumerate(zip(*windows, strict=True)):
            same = torch.allclose(*(extractor(torch.from_numpy(window)[None]) for window in (short, long)), atol=1e-6)
            assert same == (t < 4)  # then the narrow one has forgotten the first observation
        episode = torch.from_numpy(windows[1][-1][None, :, :-1])
        torch.testing.assert_close(
            extractor(torch.from_numpy(windows[1][-1])[None]), extractor.parts[0].ssm.scan(episode)[0][:, -1]
        )

    def test_what_lies_before_a_start_in_mid_window_does_not_count(self):
        extractor = SSMFeaturesExtractor(window_space(6), features_dim=5, hidden_dim=8)
        window = torch.randn(1, 6, 4)
        window[..., -1] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        other = window.clone()
        other[:, :2, :-1] = 7.0
        assert torch.equal(extractor(window), extractor(other))
        other[:, 2, :-1] = 7.0
        assert not torch.allclose(extractor(window), extractor(other))


class TestOtherObservations:
    def test_a_single_observation_is_one_step(self):
        extractor = SSMFeaturesExtractor(FLAT, features_dim=5, hidden_dim=8, num_layers=1)
        observations = torch.randn(7, 3)
        ssm = next(module for module in extractor.modules() if isinstance(module, SSM))
        assert extractor.features_dim == 5
        assert extractor(observations).shape == (7, 5)
        assert torch.equal(extractor(observations), ssm(observations))
        assert (ssm.hidden_dim, ssm.num_layers) == (8, 1)

    @pytest.mark.parametrize(
        ("space", "width"),
        [
            (spaces.Discrete(3), 3),
            (spaces.Discrete(3, start=0), 3),
            (spaces.MultiDiscrete([2, 3]), 5),
            (spaces.MultiBinary(4), 4),
            (spaces.MultiBinary([2, 3]), 6),
            (IMAGE, SMALL["cnn_output_dim"]),
            (spaces.Dict(state=FLAT, matrix=spaces.Box(-1.0, 1.0, (2, 2)), kind=spaces.Discrete(3)), 3 + 4 + 3),
            (spaces.Dict(state=FLAT, image=IMAGE), 3 + SMALL["cnn_output_dim"]),
        ],
        ids=str,
    )
    def test_what_is_no_window_is_one_step_of_all_of_it(self, space, width):
        extractor = SSMFeaturesExtractor(space, **SMALL)
        observations, others = sample(space), sample(space, seed=1)
        assert [module.state_dim for module in extractor.modules() if isinstance(module, SSM)] == [width]
        assert extractor(observations).shape == (4, 5)
        assert not torch.allclose(extractor(observations), extractor(others))
        if isinstance(space, spaces.Dict):
            for key in space.spaces:
                assert not torch.allclose(extractor(observations), extractor({**observations, key: others[key]}))

    def test_one_hot_vectors_of_a_buffer_have_an_axis_more(self):
        """A rollout buffer holds discrete observations as ``Int[B 1]``."""
        extractor = SSMFeaturesExtractor(spaces.Discrete(3), **SMALL)
        short, long = (preprocess_obs(torch.arange(3).reshape(shape), spaces.Discrete(3)) for shape in ((3,), (3, 1)))
        assert (short.ndim, long.ndim) == (2, 3)
        assert torch.equal(extractor(short), extractor(long))

    def test_images_of_floats_need_to_be_asked_for(self):
        space = spaces.Box(0.0, 1.0, (1, 36, 36))
        with pytest.raises(ValueError, match="must be an image of uint8"):
            SSMFeaturesExtractor(space, **SMALL)
        extractor = SSMFeaturesExtractor(space, **SMALL, normalized_image=True)
        assert [type(part) for part in extractor.parts[0][0].extractors.values()] == [NatureCNN]
        assert extractor(sample(space)).shape == (4, 5)


class TestDictionaries:
    SPACE = spaces.Dict(short=window_space(3), long=window_space(6, 2), goal=FLAT, image=IMAGE)

    def test_of_one_key_it_is_that_key_alone(self):
        for space in (window_space(4), FLAT, IMAGE):
            alone, within = (SSMFeaturesExtractor(each, **SMALL) for each in (space, spaces.Dict(some_key=space)))
            for own, other in zip(alone.parameters(), within.parameters(), strict=True):
                own.data.copy_(other.data)
            assert torch.equal(alone(sample(space)), within({"some_key": sample(space)}))

    def test_the_features_of_its_parts_are_added(self):
        extractor = SSMFeaturesExtractor(self.SPACE, **SMALL)
        assert extractor.features_dim == 5
        assert sorted(part.key for part in extractor.parts[:-1]) == ["long", "short"]
        observations, others = sample(self.SPACE), sample(self.SPACE, seed=1)
        changes = [
            extractor({**observations, **{key: others[key] for key in keys}}) - extractor(observations)
            for keys in (["short"], ["long"], ["goal", "image"], list(observations))
        ]
        assert all(change.abs().amin() > 0 for change in changes)
        torch.testing.assert_close(sum(changes[:-1]), changes[-1])

    def test_padding_of_one_window_says_nothing_about_another(self):
        extractor = SSMFeaturesExtractor(self.SPACE, **SMALL)
        observations = sample(self.SPACE)
        observations["short"][..., -1], observations["long"][..., -1] = 1.0, 0.0
        padded = {**observations, "short": observations["short"].clone()}
        padded["short"][:, :-1, :-1] = float("nan")
        assert torch.equal(extractor(padded), extractor(observations))
        padded["long"] = observations["long"] + torch.tensor([1.0, 0.0, 0.0])
        assert not torch.allclose(extractor(padded), extractor(observations))

    def test_keys_may_have_the_names_of_attributes(self):
        extractor = SSMFeaturesExtractor(spaces.Dict({"a.b": window_space(2), "keys": window_space(2)}), **SMALL)
        assert len(extractor.parts) == 2


class TestAsAModule:
    SPACE = TestDictionaries.SPACE

    def test_all_of_it_moves_to_another_device(self):
        extractor = SSMFeaturesExtractor(self.SPACE, **SMALL).to("meta")
        assert {tensor.device.type for tensor in extractor.state_dict().values()} == {"meta"}

    def test_it_works_where_its_input_lies_whatever_the_default_device(self):
        """As on an accelerator: were a tensor made on the default device, it would not meet those of the input."""
        extractor, observations = SSMFeaturesExtractor(self.SPACE, **SMALL), sample(self.SPACE)
        features = extractor(observations)
        with torch.device("meta"):
            assert torch.ones(()).device.type == "meta"
            elsewhere = extractor(observations)
            elsewhere.sum().backward()
        assert torch.equal(elsewhere, features)

    def test_all_of_it_gets_gradients(self):
        """Only the angle of a recurrence makes no difference to what sees a single step."""
        extractor, observations = SSMFeaturesExtractor(self.SPACE, **SMALL), sample(self.SPACE)
        for key in ("short", "long"):
            observations[key][..., -1] = 0.0  # else each step were the first of an episode
        for name, gradient in gradients(extractor, observations).items():
            if name.startswith("parts.2.") and name.endswith(".theta"):
                assert gradient is None
            else:
                assert gradient.count_nonzero() > 0, name

    def test_copies_are_equal_and_apart(self):
        extractor = SSMFeaturesExtractor(self.SPACE, **SMALL)
        other, observations = copy.deepcopy(extractor), sample(self.SPACE)
        features = extractor(observations)
        assert torch.equal(other(observations), features)
        other.parts[0].ssm.decoder.bias.data += 1.0
        torch.testing.assert_close(other(observations), features + 1.0)
        assert torch.equal(extractor(observations), features)

    def test_it_keeps_nothing_between_calls_and_draws_nothing(self, untouched_rng):
        extractor, observations = SSMFeaturesExtractor(self.SPACE, **SMALL), sample(self.SPACE)
        with untouched_rng():
            assert torch.equal(extractor(observations), extractor(observations))


class TestRefusals:
    @pytest.mark.parametrize(
        "space",
        [
            spaces.Box(0, 1, ()),
            spaces.Tuple([FLAT]),
            spaces.Text(3),
            spaces.Dict(inner=spaces.Dict(a=FLAT)),
            spaces.Dict(number=spaces.Box(0, 1, ())),
        ],
        ids=str,
    )
    def test_spaces_that_no_policy_reads(self, space):
        with pytest.raises(ValueError, match=r"SSMFeaturesExtractor needs a Box .* FlattenObservation"):
            SSMFeaturesExtractor(space)

    @pytest.mark.parametrize("shape", [(1, 35, 36), (3, 36, 20)])
    def test_images_too_small_for_the_convolutions(self, shape):
        space = spaces.Box(0, 255, shape, np.uint8)
        for each in (space, spaces.Dict(image=space, other=FLAT)):
            with pytest.raises(ValueError, match=r"an image must be at least 36 x 36.*got Box.*ResizeObservation"):
                SSMFeaturesExtractor(each)

    @pytest.mark.parametrize(
        "space", [spaces.Box(0, 1, (2, 3, 4)), spaces.Box(0, 255, (1, 2, 3, 4), np.uint8)], ids=str
    )
    def test_boxes_of_many_axes_that_are_no_image(self, space):
        with pytest.raises(ValueError, match="must be an image of uint8"):
            SSMFeaturesExtractor(space)

    @pytest.mark.parametrize(
        "space",
        [
            FrameStackObservation(gym.make(ENV_ID), 8).observation_space,
            spaces.Box(0, 1, (5, 1)),  # nothing but a mask
            spaces.Box(0, 1, (5, 5), np.int8),  # a board
        ],
        ids=str,
    )
    def test_stacks_without_a_start_mask(self, space):
        with pytest.raises(ValueError, match="the last column of a window must be a start mask"):
            SSMFeaturesExtractor(space)

    @pytest.mark.parametrize("name", ["features_dim", "hidden_dim", "num_layers"])
    @pytest.mark.parametrize("space", [FLAT, window_space(3)], ids=["plain", "window"])
    def test_sizes(self, space, name):
        with pytest.raises(ValueError, match="must be an int >= 1; got 0"):
            SSMFeaturesExtractor(space, **{name: 0})

    @pytest.mark.parametrize("size", [0, -1, 2.5, True])
    def test_the_size_of_what_reads_images(self, size):
        image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
        with pytest.raises(ValueError, match=f"cnn_output_dim must be an int >= 1; got {size}"):
            SSMFeaturesExtractor(image, cnn_output_dim=size)

    def test_a_dictionary_without_keys(self):
        with pytest.raises(ValueError, match="must be an int >= 1; got 0"):
            SSMFeaturesExtractor(spaces.Dict())


class Episodes(gym.Env):
    """Random observations for seven steps; the reward depends on the action and the observation."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._t, self._observation = 0, self.observation_space.sample()
        return self._observation, {}

    def step(self, action):
        self._t += 1
        number = self._observation["state"] if isinstance(self._observation, dict) else self._observation
        reward = float(np.sum(action) * np.sum(number) / np.size(number))
        self._observation = self.observation_space.sample()
        return self._observation, reward, self._t == 7, False, {}

    def action_masks(self):
        return [True] * int(self.action_space.n)


def plain(action_space):
    return Episodes(FLAT, action_space)


def window(action_space):
    return HistoryWindow(plain(action_space), 4)


def image(action_space):
    return Episodes(spaces.Box(0, 255, (36, 36, 1), np.uint8), action_space)


def window_in_a_dictionary(action_space):
    """A window, and what is seen of the present only: a goal, a kind and a picture."""
    rest = spaces.Dict(goal=FLAT, kind=spaces.Discrete(3), image=spaces.Box(0, 255, (36, 36, 1), np.uint8))
    env = window(action_space)
    rest.seed(0)
    space = spaces.Dict({"history": env.observation_space, **rest.spaces})
    return TransformObservation(env, lambda seen: {"history": seen, **rest.sample()}, space)


ON_POLICY = {"n_steps": 6, "batch_size": 6}
ONE_EPOCH = ON_POLICY | {"n_epochs": 1}
OFF_POLICY = {"learning_starts": 8, "batch_size": 8, "buffer_size": 100}
Q_LEARNING = OFF_POLICY | {"train_freq": 1, "target_update_interval": 2}
TWO, REAL = spaces.Discrete(2), spaces.Box(-1.0, 1.0, (1,))
# The algorithm, its actions, its options, the numbers of extractors where they are shared and where they are not.
ALGORITHMS = {
    "PPO": (PPO, TWO, ONE_EPOCH, 1, 2),
    "A2C": (A2C, TWO, {}, 1, 2),
    "TRPO": (TRPO, TWO, ON_POLICY | {"n_critic_updates": 1}, 1, 2),
    "MaskablePPO": (MaskablePPO, TWO, ONE_EPOCH, 1, 2),
    "RecurrentPPO": (RecurrentPPO, TWO, ONE_EPOCH, 1, 2),
    "DQN": (DQN, TWO, Q_LEARNING, 2, None),
    "QRDQN": (QRDQN, TWO, Q_LEARNING, 2, None),
    "SAC": (SAC, REAL, OFF_POLICY, 2, 3),
    "TQC": (TQC, REAL, OFF_POLICY, 2, 3),
    "CrossQ": (CrossQ, REAL, OFF_POLICY, 1, 2),
    "TD3": (TD3, REAL, OFF_POLICY, 2, 4),
    "DDPG": (DDPG, REAL, OFF_POLICY, 2, 4),
}

LSTM = {"lstm_hidden_size": 4}  # RecurrentPPO's, which comes on top of the extractor


def make_model(name, make_env, **policy_kwargs):
    algorithm, action_space, options, _, _ = ALGORITHMS[name]
    env = make_env(action_space)
    kind = "MultiInput" if isinstance(env.observation_space, spaces.Dict) else "Mlp"
    policy_kwargs |= {
        "features_extractor_class": SSMFeaturesExtractor,
        "features_extractor_kwargs": SMALL,
        "net_arch": [8],
        **(LSTM if algorithm is RecurrentPPO else {}),
    }
    policy = f"{kind}LstmPolicy" if algorithm is RecurrentPPO else f"{kind}Policy"
    return algorithm(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **options)


def extractors(model):
    """By the name of their module; one that is shared, once."""
    modules = model.policy.named_modules()
    return {name: module for name, module in modules if isinstance(module, SSMFeaturesExtractor)}


def weights(model):
    return {name: copy.deepcopy(dict(each.named_parameters())) for name, each in extractors(model).items()}


def check_that_all_learn(model):
    """Every weight of every extractor moves, those of the target networks too."""
    before = weights(model)
    model.learn(12)
    for name, after in weights(model).items():
        still = {key for key, weight in after.items() if torch.equal(weight, before[name][key])}
        # Only the angle of a recurrence makes no difference to what sees a single step.
        assert still == {key for key in after if key.endswith(".theta") and ".ssm." not in key}, name


def check_that_it_is_the_same_when_loaded(model, path):
    model.save(path)
    loaded = type(model).load(path, device="cpu")
    for name, after in weights(loaded).items():
        assert all(torch.equal(weight, extractors(model)[name].get_parameter(key)) for key, weight in after.items())
    env = model.get_env()
    for observations in (env.reset(), env.step([env.action_space.sample()])[0]):
        action, same = (each.predict(observations, deterministic=True)[0] for each in (model, loaded))
        np.testing.assert_array_equal(action, same)


# One of each kind: the others differ from these in their losses, not in what they do with an extractor.
FAST = ["PPO", "DQN", "SAC"]
SHARING = [name for name, (*_, separate) in ALGORITHMS.items() if separate is not None]


def slow_but(fast, names):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


class TestAlgorithms:
    @pytest.mark.parametrize("name", slow_but(FAST, [name for name in ALGORITHMS if name != "CrossQ"]))
    def test_windows_and_the_rest_of_a_dictionary(self, name, tmp_path):
        model = make_model(name, window_in_a_dictionary)
        check_that_all_learn(model)
        check_that_it_is_the_same_when_loaded(model, tmp_path / "model")

    @pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
    @pytest.mark.parametrize("name", slow_but(["PPO"], SHARING))
    def test_shared_and_separate_extractors(self, name, share, tmp_path):
        model = make_model(name, window, share_features_extractor=share)
        assert len(extractors(model)) == ALGORITHMS[name][3 if share else 4]
        check_that_all_learn(model)
        check_that_it_is_the_same_when_loaded(model, tmp_path / "model")

    @pytest.mark.slow
    @pytest.mark.parametrize("make_env", [plain, window, image])
    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_other_observations(self, name, make_env, tmp_path):
        model = make_model(name, make_env)
        check_that_all_learn(model)
        check_that_it_is_the_same_when_loaded(model, tmp_path / "model")

    @pytest.mark.each_value
    @pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_one_optimizer_has_each_weight_and_none_those_of_targets(self, name, share):
        model = make_model(name, window, **({"share_features_extractor": share} if name in SHARING else {}))
        networks = (model.policy, getattr(model.policy, "actor", None), getattr(model.policy, "critic", None))
        optimized = [
            id(weight)
            for network in networks
            if hasattr(network, "optimizer")
            for group in network.optimizer.param_groups
            for weight in group["params"]
        ]
        # Both optimizers of a shared TD3 have its weights; the critic's never sees a gradient of them.
        num_times = 2 if share and name in ("TD3", "DDPG") else 1
        for place, extractor in extractors(model).items():
            times = {optimized.count(id(weight)) for weight in extractor.parameters()}
            assert times == {0 if "target" in place else num_times}, place

    @pytest.mark.parametrize("name", slow_but(["SAC"], ["SAC", "TQC", "TD3", "DDPG"]))
    @pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
    def test_target_networks_follow(self, name, share):
        model = make_model(name, window, share_features_extractor=share)
        model.tau = 1.0  # the target is then the network itself after each of its updates
        for num_steps in (8, 16):  # before and after updates
            model.learn(num_steps)
            critic, target = model.critic.features_extractor, model.critic_target.features_extractor
            assert critic is not target
            for weight, other in zip(critic.parameters(), target.parameters(), strict=True):
                assert torch.equal(weight, other)

    def test_ars_takes_no_extractor_but_from_a_policy_that_makes_it(self, tmp_path):
        kwargs = {"n_delta": 2, "n_eval_episodes": 1, "seed": 0, "device": "cpu"}
        with pytest.raises(TypeError, match="features_extractor_class"):
            ARS("MlpPolicy", window(REAL), policy_kwargs={"features_extractor_class": SSMFeaturesExtractor}, **kwargs)
        model = ARS(SSMOfARS, window(REAL), policy_kwargs={"net_arch": [8]}, **kwargs)
        check_that_all_learn(model)
        check_that_it_is_the_same_when_loaded(model, tmp_path / "model")

    def test_crossq_has_no_policy_for_dictionaries(self):
        with pytest.raises(ValueError, match="MultiInputPolicy unknown"):
            make_model("CrossQ", window_in_a_dictionary)

    @pytest.mark.slow
    def test_goals_in_hindsight(self):
        algorithm, action_space, options, _, _ = ALGORITHMS["SAC"]
        policy_kwargs = {"features_extractor_class": SSMFeaturesExtractor, "features_extractor_kwargs": SMALL}
        model = algorithm(
            "MultiInputPolicy",
            Goals(action_space),
            replay_buffer_class=HerReplayBuffer,
            policy_kwargs=policy_kwargs,
            **{"seed": 0, "device": "cpu", **options},
        )
        check_that_all_learn(model)


class SSMOfARS(ARSPolicy):
    def make_features_extractor(self):
        return SSMFeaturesExtractor(self.observation_space, **SMALL)


class Recall(gym.Env):
    """What is shown first says which action is right at the end, four steps later: remember it, or guess."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,)), TWO

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t, self.right = 0, int(self.np_random.integers(2))
        return np.array([2 * self.right - 1, 0.0], np.float32), {}

    def step(self, action):
        self._t += 1
        done = self._t == 5
        return np.array([0.0, self._t / 5], np.float32), float(done and action == self.right), done, False, {}


@pytest.mark.slow
def test_a_window_remembers():
    envs = DummyVecEnv([lambda: HistoryWindow(Recall(), 5)] * 16)
    sizes = {"features_dim": 16, "hidden_dim": 16, "num_layers": 1}
    policy_kwargs = {"features_extractor_class": SSMFeaturesExtractor, "features_extractor_kwargs": sizes}
    # So that it does not depend on the machine's rounding: of sixteen seeds, all learn it.
    options = {"n_steps": 20, "batch_size": 80, "n_epochs": 4, "learning_rate": 2e-3, "ent_coef": 0.01}
    model = PPO("MlpPolicy", envs, policy_kwargs=policy_kwargs, seed=0, device="cpu", **options)
    model.learn(16 * 20 * 40)
    envs.seed(1)
    observations = envs.reset()
    right = envs.get_attr("right")
    for _ in range(4):
        observations, *_ = envs.step(np.zeros(16, int))
    assert len(set(right)) == 2
    assert model.predict(observations, deterministic=True)[0].tolist() == right


class Goals(gym.Env):
    """A goal to be reached by steps of any size, as ``HerReplayBuffer`` wants it."""

    observation_space = spaces.Dict(observation=FLAT, achieved_goal=FLAT, desired_goal=FLAT)

    def __init__(self, action_space):
        self.action_space = action_space

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -np.abs(achieved_goal - desired_goal).sum(axis=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t, self._place, self._goal = 0, np.zeros(3, np.float32), self._draw()
        return self._observation(), {}

    def step(self, action):
        self._t += 1
        self._place = np.clip(self._place + action.astype(np.float32), -1.0, 1.0)
        return self._observation(), float(self.compute_reward(self._place, self._goal, {})), False, self._t == 4, {}

    def _observation(self):
        return {"observation": self._draw(), "achieved_goal": self._place, "desired_goal": self._goal}

    def _draw(self):
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)
