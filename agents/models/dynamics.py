"""A model of the dynamics, the thing that adapts."""

from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from typing_extensions import Self

from ssm_metarl_gym.agents.layers import is_altered
from ssm_metarl_gym.agents.models.export import export_dynamics
from ssm_metarl_gym.agents.models.supervision import Policy, SimulatorEnv, Transitions, collect_transitions, descend
from ssm_metarl_gym.agents.ssm.model import SSM
from ssm_metarl_gym.checks import as_array, check_choice, check_flat_box, check_integer, check_number, has_bounds, shown
from ssm_metarl_gym.seeding import seed_sequence

__all__ = ["Adapts", "DynamicsModel"]

Adapts = Literal["last_layer", "all", "action_map"]

_LEAST_RESIDUAL_VARIANCE: Final = 1e-6
_LEAST_SCALE: Final = 1e-9  # of a deviation: of numbers about zero even that is rounding
_HELD_OUT: Final = 8  # stretches of time, about so many in all rows together


class DynamicsModel(nn.Module):
    """Predicts how an action changes the observation, in units of the changes' standard deviation.

    A *core* (any module from ``Float[B in]`` to ``Float[B F]``; an :class:`SSM` by default, from its zero state) makes
    features of an observation and an action, a linear *head* turns them into the change. ``adapts`` says what adapts
    at test time:

    - ``"last_layer"``: the head. The features of a transition are computed once.
    - ``"all"``: core and head.
    - ``"action_map"``: neither. The model is f(observation, A v + c) with the action v in half ranges around the middle
      of its ``Box`` (as it is where that has no bounds). The matrix ``action_map`` A, the identity at first, and the
      vector ``action_offset`` c, zero at first, are all that adapts: actuators that are swapped, reversed, weak, strong
      or biased.

    So there are two halves: :meth:`encode` computes what does not adapt, ``forward`` takes it and computes the rest.
    A new model is in evaluation mode, and just what adapts requires a gradient, see :meth:`prepare_to_adapt`. It
    computes in the type of numbers of its core. :class:`MetaTrainer` trains a model of the first two kinds on the tasks
    of a family, :meth:`fit` one of any kind in a single simulator.

    Args:
        observation_space: A one-dimensional ``Box``.
        action_space: A ``Discrete`` space (encoded one-hot) or a ``Box``.
        core: The core; None for ``SSM(input_dim, hidden_dim=64, output_dim=32)`` or, for an action map, two layers of
            256 hyperbolic tangents, whose slopes are smooth.
        adapts: ``"last_layer"``, ``"all"`` or ``"action_map"``.

    Attributes:
        residual_variance: What :meth:`fit` left unexplained of each component of the change, in variances of the
            change, ``Float[D]``; zeros before it.
        filtered_parameters: The parameters that a :class:`KalmanAdapter` may adapt: those of the action map.

    Raises:
        ValueError: A space of another kind, an unknown ``adapts``, or a core that takes or gives another shape.
    """

    input_shift: Tensor
    input_scale: Tensor
    target_scale: Tensor
    residual_variance: Tensor
    _middle: Tensor  # of an action map: from where, and in which units, actions are measured
    _unit: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        core: nn.Module | None = None,
        *,
        adapts: Adapts = "last_layer",
    ) -> None:
        super().__init__()
        check_choice("adapts", adapts, get_args(Adapts))
        if adapts == "action_map" and not isinstance(action_space, spaces.Box):
            raise ValueError(
                f"a map on the actions needs an action space that is a Box; got {action_space}. Use "
                "adapts='last_layer'."
            )
        input_dim = self.input_dim(observation_space, action_space)
        self.observation_dim = cast("spaces.Box", observation_space).shape[0]
        self.action_space = action_space
        self.adapts = adapts
        self.filtered_parameters = ("action_map", "action_offset") if adapts == "action_map" else ()
        self.core = _default_core(input_dim, adapts) if core is None else core
        device = next((parameter.device for parameter in self.core.parameters()), torch.device("cpu"))
        self.core.eval()
        try:
            with torch.no_grad():
                features = self.core(torch.zeros(1, input_dim, dtype=self._core_dtype(), device=device))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the core must take an input of shape (batch, {input_dim}): {error}") from error
        if not isinstance(features, Tensor) or features.ndim != 2:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"the core must give a tensor of shape (batch, features); got {got}.")
        with torch.device("cpu"):  # so that a seed means the same weights everywhere
            self.head = nn.Linear(features.shape[1], self.observation_dim)
            self.register_buffer("input_shift", torch.zeros(input_dim))
            self.register_buffer("input_scale", torch.ones(input_dim))
            self.register_buffer("target_scale", torch.ones(self.observation_dim))
            self.register_buffer("residual_variance", torch.zeros(self.observation_dim))
            if adapts == "action_map":
                self.action_map = nn.Parameter(torch.eye(spaces.flatdim(action_space), dtype=features.dtype))
                self.action_offset = nn.Parameter(torch.zeros(spaces.flatdim(action_space), dtype=features.dtype))
                middle, half = _half_ranges(cast("spaces.Box", action_space))
                self.register_buffer("_middle", torch.tensor(middle, dtype=features.dtype), persistent=False)
                unit = torch.tensor(np.where(half > 0.0, half, 1.0), dtype=features.dtype)
                self.register_buffer("_unit", unit, persistent=False)
        self.head.to(features.dtype)
        self.to(device)
        self.prepare_to_adapt()

    @staticmethod
    def input_dim(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> int:
        """The width of the input of a core: observation and encoded action side by side."""
        box = check_flat_box("the observation space", observation_space)
        if not isinstance(action_space, (spaces.Box, spaces.Discrete)):
            raise ValueError(f"the action space must be Discrete or a Box; got {action_space}.")
        return int(box.shape[0]) + spaces.flatdim(action_space)

    def set_normalisation(
        self, observations: npt.NDArray[Any], actions: npt.NDArray[Any], next_observations: npt.NDArray[Any]
    ) -> None:
        """Normalise inputs and targets by the statistics of a data set of transitions, one a row.

        A column counts as constant, and keeps its unit, where no more than rounding tells its values apart: of inputs
        in single precision, and of changes in that of the observations that they are differences of.
        """
        inputs = self._join(observations, actions)
        # In double precision: of many rows single precision gives a constant column a deviation.
        self.input_shift.copy_(torch.from_numpy(inputs.mean(axis=0, dtype=np.float64)))
        self.input_scale.copy_(torch.from_numpy(_scale(inputs, _rounding(inputs))))
        changes = _differences(next_observations, observations)
        self.target_scale.copy_(torch.from_numpy(_scale(changes, _rounding(observations, next_observations))))

    def inputs(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        """The input of the core: ``Float[B D]`` and ``Int[B]`` or ``Float[B A]`` -> ``Float[B in]``, normalised."""
        joined = torch.from_numpy(self._join(observations, actions)).to(self.input_shift.device)
        return ((joined - self.input_shift) / self.input_scale).to(self._core_dtype())

    def targets(self, observations: npt.NDArray[Any], next_observations: npt.NDArray[Any]) -> Tensor:
        """The changes that the model should predict, normalised: ``Float[B D]`` twice -> ``Float[B D]``."""
        change = _differences(next_observations, observations).astype(np.float32)
        changes = torch.from_numpy(change).to(self.target_scale.device) / self.target_scale
        return changes.to(self.head.weight.dtype)

    def encode(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        """What ``forward`` takes: the normalised inputs, their features where only the last layer adapts.

        For an action map they are the normalised observation and the action in half ranges, ``Float[B D + A]``.
        """
        with torch.no_grad():
            inputs = self.inputs(observations, actions)
            if self.adapts == "last_layer":
                return cast("Tensor", self.core(inputs))
            if self.adapts == "action_map":
                inputs[:, self.observation_dim :] = self.commands(actions)
            return inputs

    def commands(self, actions: npt.NDArray[Any]) -> Tensor:
        """The actions of a ``Box`` as an action map takes them, in half ranges around the middle: ``Float[B A]``."""
        given = torch.as_tensor(actions, device=self._unit.device).reshape(len(actions), -1)
        return (given.to(self.action_offset.dtype) - self._middle) / self._unit

    def with_delays(self, encoded: Tensor, delays: Tensor) -> Tensor:
        """Transitions as they are if commands come late, of which the last ones are known.

        Args:
            encoded: What :meth:`encode` gave, and behind it the :meth:`commands` of the L steps before, the latest
                first: ``Float[B D + A + L A]``.
            delays: K numbers of steps, of which the largest is L: ``Int64[K]``.

        Returns:
            ``Float[B K D + A]``: what was encoded, with the command of so many steps ago in the place of its own.

        Raises:
            ValueError: So many commands were not given.
        """
        num_actions, largest = len(self._unit), int(delays.max())
        num_given = encoded.shape[1] - len(self.input_shift)
        if num_given != largest * num_actions:
            raise ValueError(
                f"what is encoded must end with the {largest} commands of {num_actions} numbers that came before; got "
                f"{num_given} numbers more than encode() gives. Append DynamicsModel.commands() of the last actions, "
                "the latest first, and zeros before the first one."
            )
        sent = encoded[:, self.observation_dim :].unflatten(1, (-1, num_actions))  # B 1+L A
        observations = encoded[:, None, : self.observation_dim].expand(-1, len(delays), -1)
        return torch.cat([observations, sent[:, delays]], dim=2)

    def forward(self, encoded: Tensor) -> Tensor:
        """The predicted change ``Float[B D]``, normalised, from what :meth:`encode` gave.

        Behind an action map's there may be older commands, see :meth:`with_delays`, which change nothing.
        """
        if self.adapts == "last_layer":
            return cast("Tensor", self.head(encoded))
        if self.adapts == "action_map":
            observations, actions = self._split(encoded)
            executed = actions @ self.action_map.mT.to(actions.dtype) + self.action_offset.to(actions.dtype)
            encoded = self._normalised(observations, executed)
        return cast("Tensor", self.head(self.core(encoded)))

    def linearise(self, encoded: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions of many rows, each with an action map of its own, and their slopes in the entries of it.

        The slopes in x = A v + c are central differences over a tenth of the actions' standard deviation to both sides,
        and of a prediction y, dy/dA_ij = dy/dx_i v_j and dy/dc_i = dy/dx_i.

        Args:
            encoded: What :meth:`encode` gave, ``Float[B D + A]``.
            weights: The action maps, row by row, and the offsets, ``Float[B A * A + A]``.

        Returns:
            ``Float[B D]`` and ``Float[B D A * A + A]``.
        """
        observations, actions = self._split(encoded)
        num_rows, num_actions = actions.shape
        maps, executed = weights.to(actions.dtype).split([num_actions**2, num_actions], dim=1)
        executed = executed + (maps.view(num_rows, num_actions, num_actions) @ actions[..., None])[..., 0]  # B A
        step = 0.1 * self._action_scale()
        offsets = torch.cat([torch.zeros_like(step)[None], torch.diag(step), -torch.diag(step)])  # 2A+1 A
        around = executed[:, None] + offsets  # B 2A+1 A
        inputs = self._normalised(observations[:, None].expand(-1, len(offsets), -1), around)
        predictions = self.head(self.core(inputs.flatten(0, 1))).unflatten(0, around.shape[:2])  # B 2A+1 D
        centre, above, below = predictions.split([1, num_actions, num_actions], dim=1)
        slopes = (above - below) / (2.0 * step[:, None])  # B A D
        of_maps = (slopes.mT[..., None] * actions[:, None, None]).flatten(2)
        return centre[:, 0], torch.cat([of_maps, slopes.mT], dim=2)

    @property
    def hypotheses(self) -> Tensor:
        """What may be the matter with actions, as relative variances of map and offset, ``Float[4 A * A + A]``.

        Nothing; or each motor has a sign and a gain of its own, where one that is reversed lies within a standard
        deviation; or an offset beside, of half a standard deviation of the actions; or they are swapped or mixed in any
        way, as by a random rotation, whose entries have the variance 1 / A. Most motors that are not as they were obey
        their own action still, and to see this takes a transition or two, where it takes A of them to see any mix.
        """
        scale = self._action_scale().float()
        num_actions = len(scale)
        own = 4.0 * torch.eye(num_actions, device=scale.device).flatten()
        mix = torch.full((num_actions, num_actions), 1.0 / num_actions, device=scale.device).fill_diagonal_(1.0)
        offset = (0.5 * scale) ** 2
        rows = [(own, 0.0 * offset), (own, offset), (mix.flatten(), offset)]
        hypotheses = torch.stack([torch.cat(row) for row in rows])
        return torch.cat([torch.zeros_like(hypotheses[:1]), hypotheses])

    @property
    def mixed_hypotheses(self) -> Tensor:
        """The same where nothing but a mix of the actions is expected, ``Float[2 A * A + A]``.

        Nothing; or every entry of the map may be anything within about one, with an offset beside.
        """
        hypotheses = self.hypotheses[[0, -1]]
        hypotheses[1, : self.action_map.numel()] = 1.0
        return hypotheses

    @property
    def mixed_means(self) -> Tensor:
        """What is expected under each of these, in units of the map and the offset as they are, ``Float[2 A * A + A]``.

        A random mix is as likely as its opposite: a map of zeros.
        """
        means = torch.ones_like(self.mixed_hypotheses)
        means[1, : self.action_map.numel()] = 0.0
        return means

    @property
    def adapted_network(self) -> nn.Module | None:
        """All that ``forward`` computes, as a network: head, or core and head; None for an action map.

        And None where a subclass or a hook may compute something else.
        """
        if self.adapts == "action_map" or type(self).forward is not DynamicsModel.forward or is_altered(self):
            return None
        return self.head if self.adapts == "last_layer" else nn.Sequential(self.core, self.head)

    def prepare_to_adapt(self) -> None:
        """Go to evaluation mode, and let exactly those parameters require a gradient that adapt at test time."""
        self.eval()
        self.core.requires_grad_(self.adapts == "all")
        self.head.requires_grad_(self.adapts != "action_map")
        if self.adapts == "action_map":
            self.action_map.requires_grad_(True)
            self.action_offset.requires_grad_(True)

    def fit(
        self,
        env: SimulatorEnv,
        policy: Policy | None = None,
        *,
        num_transitions: int = 60_000,
        num_updates: int = 4_000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        observation_noise: npt.ArrayLike = 0.0,
        seed: int = 0,
    ) -> Self:
        """Learn the dynamics of one simulator by plain supervision: no family of tasks, no meta-learning.

        A third of the transitions are of random actions; the others are of the policy with noise of a standard
        deviation of .05, .2 and .5 of half the range (of a ``Discrete`` space: random actions as often), so that the
        model knows what lies around the policy's own behaviour. About nine tenths of each are trained on and set the
        normalisation, the rest measures :attr:`residual_variance`. An action map goes back to the identity. Only
        ``seed`` decides about all that is random, beside what the environment draws itself.

        Example:
            >>> env = gym.make("Pendulum-v1")
            >>> model = DynamicsModel(env.observation_space, env.action_space, adapts="action_map").fit(env)

        Args:
            env: The simulator in the physics that the policy knows: an environment, a vector environment, or a
                ``VecEnv`` of Stable-Baselines3. Give a policy that was trained behind ``VecNormalize`` that one: the
                policy is shown what it normalises, the model learns what is in it, and its statistics stay as they are.
            policy: Whatever has the ``predict`` of Stable-Baselines3; None for random actions alone.
            num_transitions: Number of transitions.
            num_updates: Number of steps of Adam.
            batch_size: Number of transitions in a step.
            learning_rate: Step size of the first step, from which it falls linearly to zero.
            observation_noise: Standard deviation of the noise that sensors have in the world and not in the simulator,
                of every component or of each, ``Float[D]``, in its units. The model learns without, and what it leaves
                unexplained is measured with it.
            seed: Seeds the environment, the actions and the batches.

        Returns:
            The model itself.

        Raises:
            ValueError: The spaces of the environment are others than those of the model, its actions have no bounds, a
                number is not positive, a noise is negative, or next to no transition is between finite observations, as
                others are left out.
            FloatingPointError: The descent diverges: the weights are not finite.
        """
        check_integer("num_transitions", num_transitions, least=100)
        check_integer("num_updates", num_updates)
        check_integer("batch_size", batch_size)
        check_number("learning_rate", learning_rate, ("a finite number > 0", lambda value: 0.0 < value < np.inf))
        noise = as_array(observation_noise)
        has_shape = noise.dtype.kind in "iuf" and noise.shape in ((), (self.observation_dim,))
        if not (has_shape and np.isfinite(noise).all() and (noise >= 0.0).all()):
            raise ValueError(
                f"observation_noise must be a finite number >= 0, or {self.observation_dim} of them, one for each "
                f"component; got {shown(observation_noise)}."
            )
        self.check_spaces(env)
        # Of each way to act, the last tenth in time is held out; of few rows, where that would be of an episode or two,
        # the last tenths of several stretches.
        num_stretches = max(1, _HELD_OUT // getattr(env, "num_envs", 1))
        parts = [part.split(0.9, num_stretches) for part in collect_transitions(env, policy, num_transitions, seed)]
        training, held_out = (Transitions.joined(column) for column in zip(*parts, strict=True))
        self.set_normalisation(training.observations, training.actions, training.next_observations)
        if self.adapts == "action_map":
            with torch.no_grad():
                self.action_map.copy_(torch.eye(len(self.action_map)))
                self.action_offset.zero_()
        # Without the map, which is the identity here.
        network = nn.Sequential(self.core, self.head).requires_grad_(True)
        try:
            descend(
                network,
                network.parameters(),
                self.inputs(training.observations, training.actions),
                self.targets(training.observations, training.next_observations),
                num_updates=num_updates,
                batch_size=batch_size,
                learning_rate=learning_rate,
                rng=np.random.default_rng(seed_sequence(seed, "batches")),
            )
        finally:
            self.prepare_to_adapt()
        if noise.any():
            held_out = held_out.as_seen(noise, np.random.default_rng(seed_sequence(seed, "observation noise")))
        with torch.no_grad():
            residuals = network(self.inputs(held_out.observations, held_out.actions)) - self.targets(
                held_out.observations, held_out.next_observations
            )
            # Not even of what is always the same is a model in single precision certain.
            self.residual_variance.copy_(residuals.square().mean(dim=0).clamp(min=_LEAST_RESIDUAL_VARIANCE))
        return self

    def export_onnx(self, path: str | Path) -> None:
        """Write the predictions as an ONNX file, which needs neither torch nor this package.

        The inputs are ``observation`` ``Float[n D]`` and ``action`` ``Int64[n]`` or ``Float[n A]``, the output is
        ``next_observation`` ``Float[n D]``. Normalisation is inside, and the weights are those of now.

        Args:
            path: Where to. The file takes the place of an older one when it is whole.

        Raises:
            ImportError: The extra ``export`` is not installed.
            OSError: The file cannot be written.
        """
        export_dynamics(self, path)

    def check_spaces(self, env: SimulatorEnv) -> None:
        """The spaces of an environment must be those of the model.

        Raises:
            ValueError: They are not.
        """
        if not isinstance(env, gym.Env | gym.vector.VectorEnv | VecEnv):
            raise ValueError(
                f"env must be an environment, as gym.make_vec(id, num_envs=8) gives; got {shown(env)}. Make it first."
            )
        if isinstance(env, gym.vector.VectorEnv):
            observations, actions = env.single_observation_space, env.single_action_space
        else:
            observations, actions = env.observation_space, env.action_space
        if observations.shape != (self.observation_dim,) or actions != self.action_space:
            raise ValueError(
                f"the environment must have the spaces of the model, {self.observation_dim} observations and "
                f"{self.action_space}; got {observations} and {actions}."
            )

    def _split(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised observations ``Float[... D]`` and actions ``Float[... A]``, side by side so far."""
        start, end = self.observation_dim, len(self.input_shift)
        return encoded[..., :start], encoded[..., start:end]

    def _normalised(self, observations: Tensor, executed: Tensor) -> Tensor:
        """The input of the core from normalised observations and executed actions in half ranges."""
        (_, shift), (_, scale) = self._split(self.input_shift), self._split(self.input_scale)
        actions = executed * self._unit + self._middle
        return torch.cat([observations, ((actions - shift) / scale).to(observations.dtype)], dim=-1)

    def _action_scale(self) -> Tensor:
        """The standard deviation of the actions, in half ranges: ``Float[A]``."""
        return self._split(self.input_scale)[1] / self._unit

    def _core_dtype(self) -> torch.dtype:
        """The type of numbers that the core takes."""
        # parameters() would ask whether it gave one before, which takes longer than to encode a row.
        parts = (one for module in self.core.modules() for one in module._parameters.values() if one is not None)
        return next((one.dtype for one in parts if one.is_floating_point()), torch.get_default_dtype())

    def _join(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if isinstance(self.action_space, spaces.Discrete):
            choices = np.asarray(actions) - self.action_space.start
            if (wrong := (choices < 0) | (choices >= self.action_space.n)).any():
                raise ValueError(
                    f"actions must be choices of {self.action_space}; got {np.asarray(actions)[wrong].ravel()[0]}. "
                    "Count them from the start of the space."
                )
            encoded = np.eye(int(self.action_space.n), dtype=np.float32)[choices]
        else:
            encoded = np.asarray(actions, dtype=np.float32).reshape(len(observations), -1)
        return np.concatenate([np.asarray(observations, dtype=np.float32), encoded], axis=1)


def _half_ranges(space: spaces.Box) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The middle of a box and half its ranges, ``Float64[A]`` twice; 0 and 1 where it has no bounds."""
    low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
    bounded = has_bounds(space).ravel()
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return (low + high) / 2.0, (high - low) / 2.0


def _default_core(input_dim: int, adapts: Adapts) -> nn.Module:
    if adapts == "action_map":
        return nn.Sequential(nn.Linear(input_dim, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh())
    return SSM(input_dim, hidden_dim=64, output_dim=32)


def _differences(ends: npt.NDArray[Any], starts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How observations differ, in double precision.

    Single precision would lose changes that are small beside the observations, and whole numbers without a sign have
    none below zero. Of observations in single precision it makes no difference, once rounded to that again: more than
    twice its digits are kept before, so that rounding twice gives what rounding once does.
    """
    differences: npt.NDArray[np.float64] = np.subtract(ends, starts, dtype=np.float64)
    return differences


def _rounding(*parts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """For each column more than the deviation that rounding gives to differences of its values, about twice as much.

    Numbers in double precision may have been rounded to single precision before.
    """
    values = np.concatenate(parts)
    eps = np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0.0
    rounded = (values == values.astype(np.float32)).all(axis=0)
    sizes = np.sqrt(np.square(values, dtype=np.float64).mean(axis=0))
    rounding: npt.NDArray[np.float64] = np.where(rounded, np.maximum(eps, np.finfo(np.float32).eps), eps) * sizes
    return rounding


def _scale(values: npt.NDArray[Any], rounding: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The standard deviation of each column, 1 where rounding alone explains it."""
    scale = values.std(axis=0, dtype=np.float64)
    return np.where(scale > np.maximum(rounding, _LEAST_SCALE), scale, 1.0)
