"""Hidden parameters of a MuJoCo model, by the names in it: masses, inertias, damping, friction, motors and gravity."""

import copy
import itertools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.checks import check_choice, check_integer, check_number, shown
from ssm_metarl_gym.envs.arguments import SomeTask
from ssm_metarl_gym.envs.mujoco_imports import mujoco
from ssm_metarl_gym.envs.mujoco_task import MujocoHiddenTask

__all__ = ["MujocoHiddenModel", "check_hidden_model", "model_parameters"]

Floats = npt.NDArray[np.float64]

# What a parameter "<part>_<quantity>" multiplies: an array of the model, with an entry for each part of a kind.
_QUANTITIES: Final[dict[str, tuple[str, str]]] = {
    "mass": ("body_mass", "body"),
    "inertia": ("body_inertia", "body"),
    "damping": ("dof_damping", "joint"),
    "friction": ("geom_friction", "geom"),
    "gear": ("actuator_gear", "actuator"),
}


def model_parameters(model: Any) -> dict[str, tuple[str, Any]]:
    """The parameters that a task can multiply in a MuJoCo model: by name an array of the model, and where in it.

    * ``<body>_mass``, and ``<body>_inertia`` (the principal moments, whatever the mass);
    * ``<joint>_damping``, of all degrees of freedom of the joint;
    * ``<geom>_friction`` (sliding, torsional and rolling);
    * ``<motor>_gear``, the strength of a motor; one without a name has that of its joint;
    * ``mass``, ``inertia``, ``damping``, ``friction`` and ``gear``, those of all parts at once;
    * ``gravity``.

    Of names that end in ``_joint`` or ``_geom`` that is left out. Parts that have one name then, as two motors of a
    joint, have one multiplier. What is zero in the model is no parameter.

    Args:
        model: A ``mujoco.MjModel``, such as ``env.unwrapped.model``.
    """
    places: dict[str, tuple[str, Any]] = {"gravity": ("gravity", slice(None))}
    for quantity, (field, kind) in _QUANTITIES.items():
        places[quantity] = (field, slice(None))
        places |= {f"{part}_{quantity}": (field, index) for part, index in _parts(model, kind).items()}
    return {name: (field, index) for name, (field, index) in places.items() if np.any(_array(model, field)[index])}


def _parts(model: Any, kind: str) -> dict[str, list[int]]:
    """The names of parts of a kind, and where what has this name is in the arrays of its kind."""
    parts: dict[str, list[int]] = {}
    count = {"body": model.nbody, "joint": model.njnt, "geom": model.ngeom, "actuator": model.nu}[kind]
    for i in range(count):
        name = getattr(model, kind)(i).name
        index = [i]
        if kind == "actuator" and not name and model.actuator_trntype[i] == mujoco.mjtTrn.mjTRN_JOINT:
            name = model.joint(model.actuator_trnid[i, 0]).name
        if kind == "joint":
            start = model.jnt_dofadr[i]
            index = list(range(start, start + len(model.joint(i).damping)))
        if name:
            parts.setdefault(name.removesuffix("_joint").removesuffix("_geom"), []).extend(index)
    return parts


def _array(model: Any, field: str) -> Floats:
    array: Floats = model.opt.gravity if field == "gravity" else getattr(model, field)
    return array


class MujocoHiddenModel(MujocoHiddenTask[SomeTask]):
    """A hidden task whose parameters multiply quantities of the MuJoCo model, always those of the model file.

    Subclass it together with any of Gymnasium's MuJoCo environments, and name a ``ModelTask`` whose fields are some of
    :func:`model_parameters`. With the default task, all multipliers 1, it steps bit for bit like Gymnasium's.
    :func:`check_hidden_model` proves that each parameter changes the physics.

    Example:
        >>> from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
        >>> @dataclass(frozen=True)
        ... class SwimmerTask(ModelTask):
        ...     torso_mass: float = 1.0
        ...     motor1_rot_gear: float = 1.0
        >>> class TaskSwimmerEnv(MujocoHiddenModel, SwimmerEnv):
        ...     task_type = SwimmerTask
        >>> env = TaskSwimmerEnv(TaskDistribution(SwimmerTask, {"motor1_rot_gear": LogUniform((0.5, 2.0))}))
        >>> _, info = env.reset(seed=0, options={"task": {"motor1_rot_gear": 0.5}})
        >>> env.model.actuator_gear[:, 0].tolist()
        [75.0, 150.0]

    The training ranges of ``HopperParams-v0`` and ``Walker2dParams-v0`` are those of rand_param_envs
    (https://github.com/dennisl88/rand_param_envs), which ProMP (Rothfuss et al. 2019,
    https://arxiv.org/abs/1810.06784) and PEARL (Rakelly et al. 2019, https://arxiv.org/abs/1903.08254) used:
    ``1.5^U(-3, 3)`` for mass, inertia and friction, ``1.3^U(-3, 3)`` for damping. Extrapolation is this project's: all
    exponents at once in [-4, -3] or [3, 4]. Differences to rand_param_envs: one multiplier for the three principal
    moments of a body and one for the three friction coefficients of a geom, of which motion in a plane feels a single
    one each; and MuJoCo's derived constants (``mj_setConst``) always belong to the present masses, which
    rand_param_envs left to the nominal ones.

    ## Rewards
    Those of Gymnasium's environment. Hopper's and Walker2d's are ``v + 1 - 0.001 * sum(action^2)`` with the forward
    velocity v (m/s); the 1 for each step that ends healthy.

    Raises:
        ValueError: The model has no such parameter; the message names the nearest.
    """

    model: Any
    data: Any

    def _initialize_simulation(self) -> tuple[Any, Any]:
        self.model, self.data = super()._initialize_simulation()  # type: ignore[misc]
        known = model_parameters(self.model)
        for name in self.task_type.parameter_names():
            check_choice("a parameter of the model", name, list(known))
        self._places = [known[name] for name in self.task_type.parameter_names()]
        self._nominal = {field: _array(self.model, field).copy() for field, _ in self._places}
        self._scratch = mujoco.MjData(self.model)
        return self.model, self.data

    def _apply_task(self) -> None:
        for field, nominal in self._nominal.items():
            _array(self.model, field)[:] = nominal
        for (field, place), multiplier in zip(self._places, self.task.to_dict().values(), strict=True):
            _array(self.model, field)[place] *= multiplier
        # What MuJoCo derives from masses and inertias (e.g. the weights of contacts). This moves the data that it is
        # given to the reference position, so these are not those of the running episode.
        mujoco.mj_setConst(self.model, self._scratch)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_scratch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scratch = mujoco.MjData(self.model)


def check_hidden_model(env: Any, *, num_steps: int = 500, factor: float = 4.0, seed: int = 0) -> dict[str, float]:
    """Prove that each parameter of a :class:`MujocoHiddenModel` changes the physics, and that all can be undone.

    Each parameter in turn is multiplied by ``factor`` and, where that changes nothing, divided by it, in an episode of
    random actions that goes on when the robot has fallen. Three things must hold:

    * the robot moves otherwise than in the nominal physics;
    * what MuJoCo derives from the parameters belongs to them;
    * set back, the model is the nominal one, bit for bit, and so is the motion after all of them.

    The environment itself is left as it is.

    Args:
        env: The environment; wrappers around it do not matter.
        num_steps: Steps of an episode.
        factor: What parameters are multiplied with, > 1.
        seed: Seeds starting state and actions.

    Returns:
        How far each parameter, by name, carries the robot from where it would have been: the greatest difference in any
        component of its state (positions and velocities) at any step.

    Raises:
        ValueError: One of the three does not hold, or an argument has no valid value.
    """
    check_integer("num_steps", num_steps)
    check_number("factor", factor, ("a number > 1", lambda value: 1.0 < value < np.inf))
    if not isinstance(env.unwrapped, MujocoHiddenModel):
        raise ValueError(f"env must be a MujocoHiddenModel; got {shown(env)}.")
    env = copy.deepcopy(env.unwrapped)
    nominal = _motion(env, {}, num_steps, seed)
    nominal_model = _bytes(env.model)
    farthest = dict.fromkeys(env.task_type.parameter_names(), 0.0)
    for name, value in itertools.product(farthest, (factor, 1.0 / factor)):
        if farthest[name] > 0.0:
            continue
        farthest[name] = float(np.abs(_motion(env, {name: value}, num_steps, seed) - nominal).max())
        renewed = copy.deepcopy(env.model)
        mujoco.mj_setConst(renewed, mujoco.MjData(renewed))
        if not np.array_equal(_bytes(renewed), _bytes(env.model)):
            raise ValueError(f"derived constants must belong to the parameters; got old ones for {name}={value:g}.")
        env.task = {}
        if not np.array_equal(_bytes(env.model), nominal_model):
            raise ValueError(f"a parameter that is set back must leave nothing behind; got another model after {name}.")
    if not np.array_equal(_motion(env, {}, num_steps, seed), nominal):
        raise ValueError("parameters that are set back must leave nothing behind; got another motion after them.")
    if idle := [name for name, difference in farthest.items() if difference == 0.0]:
        raise ValueError(
            f"each parameter must change the motion; got {idle}, which change nothing in {num_steps} steps. "
            "Leave them out of the task, or give more steps."
        )
    return farthest


def _motion(env: Any, task: dict[str, float], num_steps: int, seed: int) -> Floats:
    """The states of an episode of random actions: ``Float64[T S]``."""
    env.reset(seed=seed, options={"task": task})
    rng, (low, high) = np.random.default_rng(seed), env.model.actuator_ctrlrange.T
    states = []
    for _ in range(num_steps):
        env.do_simulation(rng.uniform(low, high), env.frame_skip)
        states.append(env.state_vector())
    return np.array(states)


def _bytes(model: Any) -> npt.NDArray[np.uint8]:
    """All that a model consists of."""
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer
