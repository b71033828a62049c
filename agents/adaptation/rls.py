"""Recursive least squares: the last layer of a module in closed form."""

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssm_metarl_gym.agents.adaptation.recursive import FilterState, RecursiveAdapter
from ssm_metarl_gym.agents.layers import names_weight_first
from ssm_metarl_gym.checks import Rule, check_fields

__all__ = ["LeastSquaresState", "RecursiveLeastSquares", "add_evidence", "solve_ridge"]

_RULES: Final[dict[str, Rule]] = {
    "forgetting": ("a number in (0, 1] (1 forgets nothing)", lambda value: 0.0 < value <= 1.0),
    "ridge": ("a finite number > 0", lambda value: 0.0 < value < float("inf")),
}


@dataclass(frozen=True)
class LeastSquaresState(FilterState):
    """What least squares know in B rows, with F features (a one for the bias among them) and D targets.

    Attributes:
        information: The weighted sum of the outer products of features, ``Float64[B F F]``.
        moment: The same of features and what ``centre`` leaves unexplained, ``Float64[B F D]``.
        centre: The weights that the ridge pulls to, ``Float64[B F D]``.
        weights: The solution, ``Float64[B F D]``.
    """

    information: Tensor
    moment: Tensor
    centre: Tensor
    weights: Tensor


class RecursiveLeastSquares(RecursiveAdapter[LeastSquaresState]):
    r"""Adapts the last layer of a module by ridge regression on all transitions so far, the older the less.

    After T transitions with features x (and a one for the bias) the weights are exactly::

        argmin_W  sum_t forgetting^(T - t) |y_t - W x_t|^2 + ridge |W - W_source|^2

    without a learning rate, whatever the order of magnitude of the features, as long as double precision tells the
    ridge beside their squares; where it does not, steps are rejected (Plackett 1950, "Some theorems in least squares",
    Biometrika 37; Ljung and Soderstrom 1983, "Theory and Practice of Recursive Identification", section 2.6).
    Only data are forgotten, the ridge is not ("stabilised forgetting", Kulhavy and Zarrop 1993, "On a general concept
    of forgetting", International Journal of Control 58): where features stay the same for long, the covariance of the
    textbook's recursion grows without a bound, here it never exceeds the prior. So instead of the covariance its
    inverse is carried along, in double precision, and factorised after every transition.

    Everything else is as in :class:`Adapter`, but for :meth:`adapt`: every transition counts once.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> adapter = RecursiveLeastSquares(model, ridge=1e-6)
        >>> states = torch.randn(50, 2)
        >>> loss = adapter.adapt(nn.MSELoss(), {"states": states, "targets": states @ torch.tensor([[2.0], [-1.0]])})
        >>> [round(weight, 3) for weight in model.weight[0].tolist()]
        [2.0, -1.0]

    Args:
        model: The module to adapt, in place. It applies one ``nn.Linear`` last, whose parameters are just those that
            require a gradient: a :class:`DynamicsModel` with ``adapts="last_layer"`` is such a one.
        forgetting: The weight of a transition against that of the next one: about ``1 / (1 - forgetting)`` count.
        ridge: The pull to the source, in units of squared features: as much evidence as a transition whose features
            are all as large as the root of it.
        trust_region_eps: See :class:`AdaptationConfig`.
        ema_decay: Decay of the running loss statistics.

    Raises:
        ValueError: An option is outside its range, or other parameters than those of one ``nn.Linear`` require a
            gradient. (That it is applied last can be seen, and is, in the first call of :meth:`adapt`.)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        forgetting: float = 0.95,
        ridge: float = 0.1,
        trust_region_eps: float = float("inf"),
        ema_decay: float = 0.99,
    ) -> None:
        self.forgetting = forgetting
        self.ridge = ridge
        self._head = _find_head(model)
        self._is_known_to_be_linear = False
        check_fields(self, _RULES)
        super().__init__(model, trust_region_eps=trust_region_eps, ema_decay=ema_decay)

    def initial_state(self, num_rows: int = 1) -> LeastSquaresState:
        """What is known before any transition, in each of ``num_rows`` rows."""
        source = self._as_matrix(self._region.source)  # F D
        num_features, num_targets = source.shape
        centre = source.expand(num_rows, -1, -1)
        return LeastSquaresState(
            counts=self._no_counts(num_rows),
            information=source.new_zeros(num_rows, num_features, num_features),
            moment=source.new_zeros(num_rows, num_features, num_targets),
            centre=centre,
            weights=centre,
        )

    def with_prior_covariance(self, state: LeastSquaresState) -> LeastSquaresState:
        """The same weights in every row and no evidence: from now on the ridge pulls to these weights."""
        nothing = torch.zeros_like
        return replace(
            state, information=nothing(state.information), moment=nothing(state.moment), centre=state.weights
        ).counted(covariance_resets=torch.ones_like(state.counts[:, 0]))

    def _absorb(self, state: LeastSquaresState, states_t: Tensor, targets_t: Tensor) -> LeastSquaresState:
        x_t = self._features(states_t)
        if targets_t.shape != (len(x_t), self._head.out_features):
            raise ValueError(
                f"the targets must have the shape (rows, {self._head.out_features}); got {tuple(targets_t.shape)}."
            )
        information, moment = add_evidence(
            state.information, state.moment, state.centre, x_t, targets_t.double(), self.forgetting
        )
        weights = solve_ridge(information, moment, state.centre, self.ridge)
        source = self._as_matrix(self._region.source)
        offset, beyond = self._project((weights - source).flatten(1))
        weights = source + offset.view_as(weights)
        return replace(state, information=information, moment=moment, weights=weights).counted(
            steps=torch.ones_like(beyond), projected_steps=beyond
        )

    def flat_weights(self, state: LeastSquaresState) -> Tensor:
        """The weights of each row as one vector, ``Float64[B W]``."""
        kernel, bias = state.weights.split(self._num_inputs(), dim=1)
        parts = [kernel.mT.flatten(1), bias.flatten(1)]
        return torch.cat(parts if names_weight_first(self._head) else parts[::-1], dim=1)

    def _as_matrix(self, weights: Tensor) -> Tensor:
        """Flat weights ``Float[W]`` as ``Float64[F D]``, the bias as the last row."""
        num_features, num_biases = self._num_inputs()
        num_targets = self._head.out_features
        sizes = [num_features * num_targets, num_biases * num_targets]
        if names_weight_first(self._head):
            kernel, bias = weights.double().split(sizes)
        else:
            bias, kernel = weights.double().split(sizes[::-1])
        return torch.cat([kernel.view(num_targets, num_features).mT, bias.view(num_biases, num_targets)])

    def _num_inputs(self) -> list[int]:
        """The numbers of features and of ones beside them."""
        return [self._head.in_features, int(self._head.bias is not None)]

    def _features(self, states: Tensor) -> Tensor:
        """What the last layer is given, with a one for the bias: ``Float[B ...]`` -> ``Float64[B F]``."""
        seen: list[tuple[Any, Any]] = []
        hook = self._head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        try:
            prediction = self.model(states)
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0][1] is not prediction or prediction.ndim != 2:
            raise ValueError(
                "the model must return what the layer that adapts gives, of shape (rows, targets); it applies "
                f"{self._head} {len(seen)} times, and not last. Let an Adapter adapt it."
            )
        layer = self._head
        if not self._is_known_to_be_linear and not torch.equal(
            prediction, F.linear(seen[0][0], layer.weight, layer.bias)
        ):
            raise ValueError(
                f"the layer that adapts must give W x + b for least squares; what {layer} gives is something else, by "
                "a hook or a forward of its own. Let an Adapter adapt it."
            )
        self._is_known_to_be_linear = True
        features = seen[0][0].double()
        return torch.cat([features, features.new_ones(len(features), self._num_inputs()[1])], dim=1)


def add_evidence(
    information_tm1: Tensor, moment_tm1: Tensor, centre: Tensor, x_t: Tensor, y_t: Tensor, forgetting: float
) -> tuple[Tensor, Tensor]:
    """The sums of least squares after one more transition: R_t = l R_tm1 + x x', M_t = l M_tm1 + x (y - x C)'.

    Ljung and Soderstrom 1983, equations 2.18, with the older evidence weighted down.

    Args:
        information_tm1: R, ``Float[B F F]``.
        moment_tm1: M, ``Float[B F D]``.
        centre: C, ``Float[B F D]``.
        x_t: ``Float[B F]``.
        y_t: ``Float[B D]``.
        forgetting: l.
    """
    column = x_t[:, :, None]  # B F 1
    unexplained = y_t[:, None, :] - column.mT @ centre  # B 1 D
    information_t = torch.baddbmm(information_tm1, column, column.mT, beta=forgetting)
    return information_t, torch.baddbmm(moment_tm1, column, unexplained, beta=forgetting)


def solve_ridge(information: Tensor, moment: Tensor, centre: Tensor, ridge: float) -> Tensor:
    """The weights W that solve (R + ridge I) (W - C) = M, by Cholesky's factor; NaN where there is none.

    Args:
        information: R, ``Float[B F F]``.
        moment: M, ``Float[B F D]``.
        centre: C, ``Float[B F D]``.
        ridge: What is known before any transition.
    """
    identity = torch.eye(information.shape[-1], dtype=information.dtype, device=information.device)
    factor, failed = torch.linalg.cholesky_ex(information + ridge * identity)
    solution = torch.cholesky_solve(moment, factor)
    return torch.where(failed[:, None, None] == 0, centre + solution, torch.nan)


def _find_head(model: nn.Module) -> nn.Linear:
    adapting = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    for module in model.modules():
        names = [name for name, _ in module.named_parameters()]
        if names and not set(names) <= {"weight", "bias"}:  # as where a weight is made of others
            continue
        if isinstance(module, nn.Linear) and adapting == {id(parameter) for parameter in module.parameters()}:
            return module
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    raise ValueError(
        "just the parameters of one nn.Linear, which the model applies last, must require a gradient for least "
        f"squares; got {names}. A DynamicsModel with adapts='last_layer' is such a model; an Adapter adapts any."
    )
