"""What the page computes is what the wrappers of Python do, over whole episodes."""

import json
import shutil
import subprocess
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import AdaptationConfig, Adapter
from ssm_metarl_gym.agents.models.description import rebuild_model
from ssm_metarl_gym.playground.server import SITE
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation

NODE = shutil.which("node")
DTYPES = {"F32": np.float32, "F64": np.float64}
# The class in physics.mjs, the id, and what a flip changes.
FAMILIES = {
    "cartpole": ("CartPole", "ssm_metarl/CartPolePolarity-v0", {"polarity": -1}),
    "pendulum": ("Pendulum", "ssm_metarl/PendulumPolarity-v0", {"polarity": -1}),
    "point": ("PointActuators", "ssm_metarl/PointActuators-v0", {"map_0_0": -1.0}),
}
# What else is hidden from the start, how long an episode is, and when the model is shown a wrong change.
TASKS = {
    "cartpole": {"length": 0.1, "masspole": 0.5},
    "pendulum": {"m": 1.2, "gain": 0.8},
    "point": {"map_0_1": 0.4, "map_1_1": 0.7},
}
LENGTHS = {"cartpole": 200, "pendulum": 200, "point": 100}
FLIP = 60
WRONG = {30: "outliers", 45: "NaN", 75: "stuck", 90: "late"}


def read_bundle(path):
    """The tensors of a bundle by name, and what it says of them."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    described = json.loads(header.pop("__metadata__")["bundle"])
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
    return described, tensors


def make_policy(described, tensors):
    """What the policy of a bundle asks for."""
    scaling = {name: tensors[f"policy.normaliser.{name}"] for name in ("mean", "scale")}
    layers = []
    for i, layer in enumerate(described["policy"]["layers"]):
        if "activation" in layer:
            layers.append(getattr(nn, layer["activation"])())
        else:
            layers.append(nn.Linear(*layer["linear"]))
            layers[-1].load_state_dict(
                {name: torch.as_tensor(tensors[f"policy.layers.{i}.{name}"]) for name in ("weight", "bias")}
            )
    network, clip = nn.Sequential(*layers).double(), described["policy"]["normaliser"]["clip"]

    def act(observation):
        seen = np.clip((observation - scaling["mean"]) / scaling["scale"], -clip, clip).astype(np.float32)
        with torch.no_grad():
            output = network(torch.as_tensor(seen).double()).numpy()
        return (
            int(output.argmax())
            if described["policy"]["output"] == "argmax"
            else np.clip(output, -1.0, 1.0).astype(np.float32)
        )

    return act


def wrap(described, tensors, env):
    """The environment in both wrappers, whose model is told wrong changes in some steps."""
    models = {}
    for name in ("model", "reference"):
        weights = {key.removeprefix(f"{name}."): torch.as_tensor(value) for key, value in tensors.items()
                   if key.startswith(f"{name}.")}  # fmt: skip
        adapting = ["head.weight", "head.bias"]
        models[name] = rebuild_model(
            described[name] | {"weights": weights, "adapting": adapting}, env.observation_space, env.action_space
        )
        # What is normalised is rounded to single precision, and computed with in double, as JavaScript does.
        models[name].core.double()
        models[name].head.double()
    bounds = {name: described["adapter"][name] for name in
              ("lr", "grad_clip_norm", "trust_region_eps", "max_steps_per_call")}  # fmt: skip
    adapter = Adapter(models["model"], AdaptationConfig(**bounds, ema_decay=0.99, entropy_weight=0.0))
    online = {name: value for name, value in described["online"].items() if name != "loss"}
    env = OnlineAdaptation(env, adapter, **online)
    number, before, targets = 0, None, env.model.targets

    def corrupted(*transition):
        nonlocal number, before
        true = targets(*transition)
        before, earlier = true, true if before is None else before
        kind = WRONG.get(number)
        number += 1
        factors = {None: 1.0, "outliers": 100.0, "NaN": np.nan, "stuck": 0.0}
        return earlier if kind == "late" else factors[kind] * true

    env.model.targets = corrupted
    options = {name: float(value) if value == "inf" else value for name, value in described["correction"].items()}
    return ActionCorrection(env, models["reference"], **options)


def play(name, *, seed, changes):
    """The states that an episode of Python's goes through, what is told in each step, and how often it falls."""
    _, env_id, _ = FAMILIES[name]
    described, tensors = read_bundle(SITE / f"{name}.safetensors")
    base = gym.make(env_id, task=TASKS[name])
    env, act = wrap(described, tensors, base), make_policy(described, tensors)
    observation, _ = env.reset(seed=seed)
    states, steps, num_falls = [np.asarray(base.unwrapped.state).tolist()], [], 0
    for i in range(LENGTHS[name]):
        if i in changes:
            base.unwrapped.task = base.unwrapped.task.to_dict() | changes[i]
        asked = act(observation)
        observation, reward, _, _, info = env.step(asked)
        states.append(np.asarray(base.unwrapped.state).tolist())
        num_falls += info.get("restarted", False)
        adaptation, correction = info["adaptation"], info["correction"]
        told = {key: adaptation[key] for key in ("error", "distance", "steps", "source_used", "num_transitions",
                                                 "num_outliers", "num_suspicions", "num_changes")}  # fmt: skip
        told |= {key: correction[key] for key in ("taken", "gate_open", "adapted_error", "reference_error", "effect")}
        steps.append({"observation": observation, "reward": reward, "asked": asked} | told)
    return states, steps, num_falls


@pytest.mark.skipif(NODE is None, reason="needs Node.js, which runs the page's JavaScript without a browser")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "point" else pytest.mark.slow) for name in FAMILIES]
)
def test_an_episode_of_the_page_is_one_of_the_wrappers(name):
    physics, _, flip = FAMILIES[name]
    changes = {FLIP: flip}
    states, expected, num_falls = play(name, seed=3, changes=changes)
    assert any(step["gate_open"] for step in expected[FLIP:])
    assert name != "cartpole" or num_falls  # after which another attempt begins
    request = {"site": str(SITE), "bundle": str(SITE / f"{name}.safetensors"), "physics": physics}
    request |= {"task": TASKS[name], "states": states, "changes": changes, "wrong": WRONG}
    script = Path(__file__).with_name("replay.mjs")
    done = subprocess.run(  # noqa: S603
        [NODE, str(script)], input=json.dumps(request), capture_output=True, text=True, check=True
    )
    played = json.loads(done.stdout)
    assert len(played["steps"]) == len(expected) == LENGTHS[name]
    for i, (step, one) in enumerate(zip(played["steps"], expected, strict=True)):
        for key, value in one.items():
            got = np.ravel([np.nan if part is None else part for part in np.atleast_1d(step[key])]).astype(float)
            wanted = np.atleast_1d(np.nan if value is None else value).astype(float)
            if key == "error":  # infinite or no number: an outlier in any case, and JSON has neither
                got, wanted = (np.where(np.isfinite(each), each, np.nan) for each in (got, wanted))
            # The effect is measured along the asked action, which of nearly nothing is noise.
            tolerance = 1e-3 if key == "effect" and np.abs(one["asked"]).max() < 0.05 else 1e-5
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance, err_msg=f"step {i}, {key}")
    # By itself, rounding grows in what is unstable, but not so far that it would matter.
    np.testing.assert_allclose(played["total"], sum(step["reward"] for step in expected), rtol=1e-3)
