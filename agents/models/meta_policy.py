"""A policy whose weights can be adapted to a task, with or without memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from ssm_metarl_gym.agents.models.action_distributions import DiagonalGaussian, action_distribution
from ssm_metarl_gym.agents.ssm.export import export_onnx
from ssm_metarl_gym.agents.ssm.model import SSM
from ssm_metarl_gym.agents.ssm.policies import SSMPolicy
from ssm_metarl_gym.agents.stateless import StatelessModule, attributes_kept
from ssm_metarl_gym.checks import check_choice, check_flat_box, check_integer

__all__ = ["MetaPolicy", "Network", "PolicyStepper"]

Network = Literal["mlp", "ssm"]

# Small enough that the first actions are as good as independent of the observation, as in SB3.
_HEAD_GAIN = 0.01


class MetaPolicy(nn.Module):
    """The distribution of the next action, from the observation or from all since the start of the episode.

    A *core* (two layers of rectified linear units, as in the experiments of Finn et al. 2017,
    https://arxiv.org/abs/1703.03400, or an :class:`SSM`, which remembers) makes features of a normalised observation, a
    linear *head* the parameters of the distribution. For a ``Box`` these are means in units of half its width, and
    the logarithms of standard deviations that do not depend on the observation. All parameters take part in adaptation.

    Example:
        >>> policy = MetaPolicy(spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(2))
        >>> log_probabilities, _ = policy(torch.zeros(8, 100, 4))
        >>> log_probabilities.shape
        torch.Size([8, 100, 2])

    Args:
        observation_space: A one-dimensional ``Box``.
        action_space: ``Discrete`` from 0, or a one-dimensional ``Box``.
        network: ``"mlp"`` or ``"ssm"``.
        width: The width of the layers.

    Attributes:
        distribution: What the parameters mean.
        is_normalised: Whether :meth:`set_normalisation` was called: training does so once, before the first update.
        advantage_scale: The unit of the advantages in the steps that adapt this policy.

    Raises:
        ValueError: A space of another kind, an unknown network or a width that is not a positive (for an SSM: even)
            integer.
    """

    input_shift: Tensor
    input_scale: Tensor
    advantage_scale: Tensor
    is_normalised: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        network: Network = "mlp",
        width: int = 64,
    ) -> None:
        super().__init__()
        input_dim = check_flat_box("the observation space", observation_space).shape[0]
        check_choice("network", network, get_args(Network))
        check_integer("width", width)
        if network == "ssm" and width % 2:
            raise ValueError(f"width must be even for network='ssm'; got {width}. Use {width + 1}.")
        self.observation_space = observation_space
        self.action_space = action_space
        self.network = network
        self.width = width
        self.distribution = action_distribution(action_space)
        self.core: nn.Module
        if network == "ssm":
            self.core = SSM(input_dim, hidden_dim=width, output_dim=width)
        else:
            self.core = nn.Sequential(nn.Linear(input_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, spaces.flatdim(action_space))
        with torch.no_grad():
            self.head.weight.mul_(_HEAD_GAIN)
            self.head.bias.zero_()
        if isinstance(self.distribution, DiagonalGaussian):
            self.log_std = nn.Parameter(torch.zeros(len(self.distribution.scale)))
        self.register_buffer("input_shift", torch.zeros(input_dim))
        self.register_buffer("input_scale", torch.ones(input_dim))
        self.register_buffer("advantage_scale", torch.ones(()))
        self.register_buffer("is_normalised", torch.zeros((), dtype=torch.bool))

    def set_normalisation(self, observations: Tensor) -> None:
        """Normalise observations from now on by the statistics of ``Float[N D]``."""
        scale, shift = torch.std_mean(observations.to(self.input_shift.device), dim=0, correction=0)
        self.input_shift.copy_(shift)
        self.input_scale.copy_(torch.where(scale > 1e-6, scale, 1.0))
        self.is_normalised.fill_(True)

    def set_advantage_scale(self, advantages: Tensor) -> None:
        """Measure advantages in units of the root mean square of ``Float[N]``: one ``inner_lr`` suits any reward."""
        scale = advantages.square().mean().sqrt()
        self.advantage_scale.copy_(torch.where(scale > 1e-6, scale, 1.0))

    def normalise(self, observations: Tensor) -> Tensor:
        """Observations ``Float[... D]`` as the network sees them, of the same shape."""
        return (observations - self.input_shift) / self.input_scale

    def forward(self, observations: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The parameters of the distribution at each step, and the memory after the last one.

        Args:
            observations: ``Float[B T D]``, from the start of an episode or from where ``state`` was left.
            state: What the last call returned; None at the start of an episode. A network without memory has an empty
                one.

        Returns:
            ``Float[B T P]``, see :attr:`distribution`, and the memory ``Float[B ...]``.
        """
        inputs = self.normalise(observations)
        if isinstance(self.core, SSM):
            features, state = self.core.scan(inputs, state)
        else:
            features, state = self.core(inputs), observations.new_zeros(len(observations), 0)
        return self.to_parameters(self.head(features), getattr(self, "log_std", None)), state

    def to_parameters(self, outputs: Tensor, log_std: Tensor | None) -> Tensor:
        """The parameters ``Float[... P]`` of the distribution from what the head gives and, for a Box, ``log_std``."""
        if log_std is None:
            return F.log_softmax(outputs, dim=-1)
        return torch.cat([outputs, log_std.expand_as(outputs)], dim=-1)

    def stepper(self, weights: Mapping[str, Tensor]) -> "PolicyStepper":
        """Acts in K tasks side by side, with weights of its own in each, from the start of episodes on.

        Args:
            weights: ``[K ...]`` by name, at least one; parameters that are not in it are this policy's own.
        """
        return (_BatchedStepper if self.network == "mlp" else _MappedStepper)(self, weights)

    def to_sb3(self) -> ActorCriticPolicy:
        """A policy of Stable-Baselines3 with the same distribution of actions: it can be saved, run and trained on.

        It is an ``ActorCriticPolicy`` with ``net_arch={"pi": [width, width]}``, or an :class:`SSMPolicy`; a ``PPO`` or
        :class:`SSMPPO` made with the same arguments goes on training it after ``algorithm.policy.load_state_dict``. The
        normalisation of observations is part of its first layer. Its critic is **untrained**, because meta-training
        fits a linear baseline to each task instead.

        Example:
            >>> policy = MetaPolicy(spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(2)).to_sb3()
            >>> policy.save("policy.zip")
            >>> action, _ = policy.predict(np.zeros(4, dtype=np.float32))
        """
        with torch.random.fork_rng(devices=[]):  # the constructor draws weights, of which only the critic's stay
            torch.default_generator.manual_seed(0)
            policy = self._untrained_sb3().to(self.input_shift.device)
        core = policy.ssm if isinstance(policy, SSMPolicy) else policy.mlp_extractor.policy_net
        first = cast("nn.Linear", core.encoder if isinstance(core, SSM) else core[0])
        head = cast("nn.Linear", policy.action_net)
        core.load_state_dict(self.core.state_dict())
        head.load_state_dict(self.head.state_dict())
        with torch.no_grad():
            first.weight.div_(self.input_scale)
            first.bias.sub_(first.weight @ self.input_shift)
            if isinstance(self.distribution, DiagonalGaussian):
                # From units of half the Box to those of the environment.
                shift, scale = (
                    torch.as_tensor(x).to(self.log_std) for x in (self.distribution.shift, self.distribution.scale)
                )
                head.weight.mul_(scale[:, None])
                head.bias.mul_(scale).add_(shift)
                policy.log_std.copy_(self.log_std + scale.log())
        return policy

    def export_onnx(self, path: str | Path) -> None:
        """Write the most probable actions as an ONNX file, as :func:`~ssm_metarl_gym.agents.export_onnx` does."""
        export_onnx(self.to_sb3(), path)

    def _untrained_sb3(self) -> ActorCriticPolicy:
        """A policy of Stable-Baselines3 with the same networks, and with weights of its own."""

        def no_schedule(_: float) -> float:
            return 0.0  # it is the algorithm that goes on training who brings its own

        spaces_ = (self.observation_space, self.action_space)
        if self.network == "ssm":
            return SSMPolicy(
                *spaces_, no_schedule, net_arch=[], ssm_kwargs={"hidden_dim": self.width, "output_dim": self.width}
            )
        layers = [self.width, self.width]
        return ActorCriticPolicy(*spaces_, no_schedule, net_arch={"pi": layers, "vf": layers}, activation_fn=nn.ReLU)


class PolicyStepper(Protocol):
    """One policy with K sets of weights, which takes one step after the other."""

    def step(self, observations: Tensor) -> Tensor:
        """The parameters of the distributions of the next actions: ``Float[K M D]`` -> ``Float[K M P]``."""
        ...


class _MappedStepper:
    """A policy of any network, mapped over the sets of weights; it keeps the memory between steps."""

    def __init__(self, policy: MetaPolicy, weights: Mapping[str, Tensor]) -> None:
        self._policy = policy
        self._module = StatelessModule(policy)
        self._weights = dict(weights)
        self._state: Tensor | None = None

    def step(self, observations: Tensor) -> Tensor:
        in_dims = (0, 0, None if self._state is None else 0)
        with attributes_kept(self._policy):
            parameters, self._state = vmap(self._call, in_dims)(self._weights, observations[:, :, None], self._state)
        return parameters[:, :, 0]

    def _call(self, weights: dict[str, Tensor], observations: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        called: tuple[Tensor, Tensor] = self._module(weights, (observations, state))
        return called


class _BatchedStepper:
    """A policy without memory, as three batched products of matrices, which spares nine tenths of the time."""

    def __init__(self, policy: MetaPolicy, weights: Mapping[str, Tensor]) -> None:
        num_tasks = len(next(iter(weights.values())))
        shared = {name: parameter.expand(num_tasks, *parameter.shape) for name, parameter in policy.named_parameters()}
        every = {**shared, **weights}
        self._policy = policy
        self._layers = [
            (every[f"{name}.weight"].mT, every[f"{name}.bias"][:, None]) for name in ("core.0", "core.2", "head")
        ]
        self._log_std = every["log_std"][:, None] if "log_std" in every else None  # K 1 A

    def step(self, observations: Tensor) -> Tensor:
        *hidden_layers, (head, bias) = self._layers
        features = self._policy.normalise(observations)
        for weight, shift in hidden_layers:
            features = torch.baddbmm(shift, features, weight).relu_()
        return self._policy.to_parameters(torch.baddbmm(bias, features, head), self._log_std)
