"""Damaged files and other files are told apart from bundles, and the format is that of safetensors."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors.numpy
from gymnasium import spaces
from stable_baselines3 import PPO

import ssm_metarl_gym
from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel
from ssm_metarl_gym.bundle import load_bundle
from ssm_metarl_gym.bundle.bundle_file import read_bundle, write_bundle
from ssm_metarl_gym.bundle.tensor_file import read_tensors, write_tensors
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation

BOUNDS = AdaptationConfig(0.1, np.inf, np.inf, 0.9, 0.0, 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, plain):
    env = gym.make("Pendulum-v1")
    model = DynamicsModel(env.observation_space, env.action_space, plain(4))
    env = ActionCorrection(OnlineAdaptation(env, Adapter(model, BOUNDS)), model)
    path = tmp_path_factory.mktemp("saved") / "folder" / "robot.safetensors"
    env.save_bundle(path, PPO("MlpPolicy", env, seed=0, device="cpu"))
    return path


def test_safetensors_reads_what_was_written(saved):
    tensors, metadata = read_tensors(saved)
    read = safetensors.numpy.load_file(saved)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == read[name].dtype
        assert np.array_equal(tensor, read[name])
    with safetensors.safe_open(saved, "numpy") as file:
        assert file.metadata() == metadata


def test_what_safetensors_wrote_is_read(tmp_path):
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((), dtype=np.float32), "c": np.zeros(3, dtype=np.uint8)}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", {"text": "x"})
    read, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"text": "x"}
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert np.array_equal(read[name], tensor)


def test_numbers_lie_aligned_in_the_order_of_a_little_machine(tmp_path):
    write_tensors(tmp_path / "a", {"x": np.array([1.0, 2.0], dtype=">f8")}, {})
    data = (tmp_path / "a").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert data[8 + length :] == np.array([1.0, 2.0], dtype="<f8").tobytes()
    assert json.loads(data[8 : 8 + length])["x"] == {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}


@pytest.mark.parametrize("name", ["cartpole", "pendulum", "point"])
def test_the_bundles_of_the_playground_are_read(name):
    bundle = load_bundle(Path(ssm_metarl_gym.__file__).parent / "playground" / "site" / f"{name}.safetensors")
    for _ in range(3):
        assert np.isfinite(bundle.act(np.full(bundle.observation_dim, 0.1))).all()


def test_infinities_are_words(saved, tmp_path):
    described, weights = read_bundle(saved)
    assert described["adapter"]["grad_clip_norm"] == np.inf
    write_bundle(tmp_path / "again", described | {"x": [-np.inf, np.float32(0.5)]}, weights)
    assert read_bundle(tmp_path / "again")[0] == described | {"x": [-np.inf, 0.5]}
    text = read_tensors(tmp_path / "again")[1]["bundle"]
    assert json.loads(text)["x"] == ["-inf", 0.5]


def test_every_flipped_bit_is_found(saved, tmp_path):
    data = bytearray(saved.read_bytes())
    rng = np.random.default_rng(0)
    for place in [*range(16), *rng.integers(16, len(data), size=60).tolist()]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            load_bundle(tmp_path / "damaged")
        except ValueError as error:
            assert str(tmp_path / "damaged") in str(error)  # noqa: PT017
        else:
            assert data[place : place + 1] == b" "  # which JSON allows, and nobody reads


@pytest.mark.parametrize("part", [0, 4, 100, -1, -400])
def test_a_part_of_a_file_is_refused(saved, tmp_path, part):
    (tmp_path / "part").write_bytes(saved.read_bytes()[:part])
    with pytest.raises(ValueError, match="part must be a whole safetensors file; it is damaged"):
        load_bundle(tmp_path / "part")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("hello, world")
    with pytest.raises(ValueError, match="text must be a whole safetensors file"):
        load_bundle(tmp_path / "text")
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "weights", {"format": "pt"})
    with pytest.raises(ValueError, match=r"weights must be a file written by ActionCorrection\..* got 'pt'"):
        load_bundle(tmp_path / "weights")
    with pytest.raises(FileNotFoundError):
        load_bundle(tmp_path / "missing")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("model", "adapts", "nothing"),
        ("adapter", "kind", "eval"),
        ("adapter", "lr", -1.0),
        ("online", "window", 0),
        ("online", "restore", "sometimes"),
        ("correction", "gate", -1.0),
        ("correction", "match", "all"),
        ("policy", "output", "argmax"),
        ("policy", "layers", [{"activation": "Exp"}]),
        ("policy", "layers", []),
        ("action_space", "dtype", "int8"),
        ("action_space", "low", [0.0, 0.0]),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(saved, tmp_path, part, name, value):
    described, weights = read_bundle(saved)
    write_bundle(tmp_path / "wrong", described | {part: described[part] | {name: value}}, weights)
    with pytest.raises(ValueError, match="wrong does not fit"):
        load_bundle(tmp_path / "wrong")


def test_weights_of_another_shape_are_refused(saved, tmp_path):
    described, weights = read_bundle(saved)
    weights["model"]["head.weight"] = weights["model"]["head.weight"][:, 1:]
    write_bundle(tmp_path / "wrong", described, weights)
    with pytest.raises(ValueError, match="wrong does not fit"):
        load_bundle(tmp_path / "wrong")


def test_choices_may_begin_anywhere(tmp_path, plain):
    class Env(gym.Env):
        observation_space = spaces.Box(-1.0, 1.0, (2,))
        action_space = spaces.Discrete(3, start=5)

    env = Env()
    model = DynamicsModel(env.observation_space, env.action_space, plain(5))
    env = ActionCorrection(OnlineAdaptation(env, Adapter(model, BOUNDS)), model, gate=0.0)

    class Shifted(gym.Env):
        observation_space = env.observation_space
        action_space = spaces.Discrete(3)

    policy = PPO("MlpPolicy", Shifted(), seed=0, device="cpu").policy
    policy.action_space = env.action_space
    env.save_bundle(tmp_path / "robot", policy)
    bundle = load_bundle(tmp_path / "robot")
    actions = {int(bundle.act(observation)) for observation in np.random.default_rng(0).normal(size=(20, 2))}
    assert actions <= {5, 6, 7}
