"""Adapting a model of the dynamics during an episode, and showing an agent what it predicts."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.stateless import copy_module
from ssm_metarl_gym.checks import check_integer

__all__ = ["OnlineAdaptation"]

_RESTORE: Final = ("episode", "call", "never")


class OnlineAdaptation(
    gym.Wrapper[npt.NDArray[np.float32], Any, npt.NDArray[np.float32], Any], gym.utils.RecordConstructorArgs
):
    """Keeps adapting a :class:`DynamicsModel` to the transitions of the running episode.

    After every step the latest transition joins the last ``window`` ones and ``adapter.adapt`` is called on them. No
    reward is used. Transitions onto the restart of a trial (``info["restarted"]``) are left out. Rewards, flags and the
    wrapped observation stay as they are.

    With ``observe_predictions`` the observation is ``Float[D + K D]``: the wrapped one, and behind it what the adapted
    model predicts for each of K probe actions, in their order: the normalised change of the observation, clipped. So an
    ordinary, memoryless policy sees what each action would do *now*; train it with the wrapper in place.

    ``info["adaptation"]`` holds, at every step, ``loss`` (after adapting; None where nothing was adapted), ``steps``
    and ``rejected_steps`` (since the source was last restored), ``distance`` (of the weights from the source, relative)
    and ``num_transitions`` (in the window).

    Example:
        >>> trainer = MetaTrainer("ssm_metarl/CartPolePolarity-v0").learn(800)
        >>> adapter = Adapter(trainer.model, trainer.adaptation_config())
        >>> env = OnlineAdaptation(gym.make("ssm_metarl/CartPolePolarity-v0"), adapter, observe_predictions=True)

    Args:
        env: An environment with the spaces of the model.
        adapter: An adapter of a :class:`DynamicsModel`. The wrapper works on a copy, its attribute ``adapter``.
        window: Number of transitions that are kept.
        every: Number of steps between two calls of the adapter.
        warmup: Number of transitions that must be there before the first call.
        restore: When the adapter goes back to the source: at every reset (``"episode"``), before every call as well
            (``"call"``) or ``"never"``.
        loss_fn: Takes predicted and true changes of the observation, normalised, and gives a scalar.
        observe_predictions: Whether the predictions join the observation.
        probe_actions: The actions to predict for; None for every action of a ``Discrete`` space and for the lowest, the
            zero and the highest action of a ``Box``.
        clip: Bound of the predictions, in standard deviations of the change.

    Raises:
        ValueError: An argument is outside its range, or the model is of another kind or of other spaces.
    """

    def __init__(
        self,
        env: gym.Env[npt.NDArray[np.float32], Any],
        adapter: Adapter,
        *,
        window: int = 16,
        every: int = 1,
        warmup: int = 1,
        restore: Literal["episode", "call", "never"] = "episode",
        loss_fn: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
        observe_predictions: bool = False,
        probe_actions: Sequence[Any] | None = None,
        clip: float = 5.0,
    ) -> None:
        # One of its own: environments that shared one would adapt to each other's tasks, and the model of a trainer
        # would no longer be the one that was trained.
        adapter = copy_module(adapter)
        gym.utils.RecordConstructorArgs.__init__(
            self,
            adapter=adapter,
            window=window,
            every=every,
            warmup=warmup,
            restore=restore,
            loss_fn=loss_fn,
            observe_predictions=observe_predictions,
            probe_actions=probe_actions,
            clip=clip,
        )
        super().__init__(env)
        for name, value in (("window", window), ("every", every), ("warmup", warmup)):
            check_integer(name, value)
        if warmup > window:
            raise ValueError(f"warmup must be at most window ({window}); got {warmup}.")
        if restore not in _RESTORE:
            raise ValueError(f"restore must be one of {list(_RESTORE)}; got {restore!r}.")
        if not clip > 0.0:
            raise ValueError(f"clip must be > 0; got {clip!r}.")
        self.adapter = adapter
        self.model = _check_model(self.adapter, env)
        self._every = every
        self._warmup = warmup
        self._restore = restore
        self._loss_fn = loss_fn
        self._clip = clip
        probes = _probe_actions(env.action_space, probe_actions) if observe_predictions else []
        self._probes = np.asarray(probes, dtype=env.action_space.dtype).reshape(-1, *(env.action_space.shape or ()))
        if observe_predictions:
            self.observation_space = self._with_predictions(env.observation_space)
        self._transitions: deque[tuple[Tensor, Tensor]] = deque(maxlen=window)
        self._num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode with an empty window and, unless ``restore="never"``, the source weights."""
        observation, info = self.env.reset(seed=seed, options=options)
        if self._restore != "never":
            self.adapter.reset()
        self._transitions.clear()
        self._num_steps = 0
        self._observation = observation.copy()  # the caller may change its own
        return self._observe(observation, self._encode_probes(observation)), info | {"adaptation": self._report(None)}

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, adapt to the transition, and predict from where it led."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        encoded = self._encode(observation, action)
        if not info.get("restarted", False):
            self._transitions.append((encoded[:1], self.model.targets(self._observation[None], observation[None])))
        self._num_steps += 1
        loss = None
        if len(self._transitions) >= self._warmup and self._num_steps % self._every == 0:
            loss = self._adapt()
        self._observation = observation.copy()
        info = info | {"adaptation": self._report(loss)}
        return self._observe(observation, encoded[1:]), reward, terminated, truncated, info

    def _encode(self, observation: npt.NDArray[np.float32], action: Any) -> Tensor:
        """The model's encoding ``Float[1+K F]`` of the last transition and, below it, of each probe, in one pass."""
        actions = np.concatenate([np.asarray(action, dtype=self._probes.dtype)[None], self._probes])
        observations = np.concatenate([self._observation[None], np.tile(observation, (len(self._probes), 1))])
        return self.model.encode(observations, actions)

    def _encode_probes(self, observation: npt.NDArray[np.float32]) -> Tensor | None:
        if not len(self._probes):
            return None
        return self.model.encode(np.tile(observation, (len(self._probes), 1)), self._probes)

    def _observe(self, observation: npt.NDArray[np.float32], encoded_probes: Tensor | None) -> npt.NDArray[np.float32]:
        if encoded_probes is None or not len(self._probes):
            return observation
        with torch.no_grad():
            predictions = self.model(encoded_probes).clamp(-self._clip, self._clip)
        return np.concatenate([observation, predictions.flatten().cpu().numpy()])

    def _adapt(self) -> float:
        if self._restore == "call":
            self.adapter.reset()
        inputs, targets = (torch.cat(column) for column in zip(*self._transitions, strict=True))
        return self.adapter.adapt(self._loss_fn, {"states": inputs, "targets": targets})

    def _report(self, loss: float | None) -> dict[str, Any]:
        stats = self.adapter.stats
        return {
            "loss": loss,
            "steps": stats.steps,
            "rejected_steps": stats.rejected_steps,
            "distance": stats.distance,
            "num_transitions": len(self._transitions),
        }

    def _with_predictions(self, space: spaces.Space[Any]) -> Any:
        if not isinstance(space, spaces.Box):
            raise ValueError(f"the observation space must be a Box; got {space}.")
        bound = np.full(len(self._probes) * space.shape[0], self._clip, dtype=np.float32)
        low, high = np.append(space.low, -bound), np.append(space.high, bound)
        return spaces.Box(low, high, dtype=low.dtype.type)


def _check_model(adapter: Adapter, env: gym.Env[Any, Any]) -> DynamicsModel:
    if not isinstance(adapter, Adapter):
        raise ValueError(f"OnlineAdaptation needs an adapter of a DynamicsModel; got {type(adapter).__name__}.")
    model = adapter.model
    if not isinstance(model, DynamicsModel):
        raise ValueError(f"OnlineAdaptation needs an adapter of a DynamicsModel; got one of {type(model).__name__}.")
    if env.action_space != model.action_space or env.observation_space.shape != (model.observation_dim,):
        raise ValueError(
            f"the model must be made for the spaces of the environment, {env.observation_space} and "
            f"{env.action_space}; it is for {model.observation_dim} observations and {model.action_space}."
        )
    return model


def _probe_actions(space: spaces.Space[Any], given: Sequence[Any] | None) -> Sequence[Any]:
    """The actions to predict for, each of which must be in the space."""
    if given is None:
        if isinstance(space, spaces.Discrete):
            given = list(range(int(space.start), int(space.start + space.n)))
        elif isinstance(space, spaces.Box) and space.is_bounded():
            given = [space.low, np.clip(np.zeros_like(space.low), space.low, space.high), space.high]
        else:
            raise ValueError(f"probe_actions must be given for the action space {space}.")
    try:
        # Numbers may lose precision but not their fractions: 0.5 is no action of a Discrete space.
        probes = [np.asarray(action).astype(space.dtype, casting="same_kind") for action in given]
    except (TypeError, ValueError):
        probes = []
    if not probes or not all(space.contains(action) for action in probes):
        raise ValueError(f"probe_actions must be one or more actions of {space}; got {given!r}.")
    return probes
