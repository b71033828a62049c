"""The environments, and what each of them hides."""

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from ssm_metarl_gym.tasks.actuators import ActuatorDistribution
from ssm_metarl_gym.tasks.families import FAMILIES
from ssm_metarl_gym.tasks.marginals import Choice, Marginal

__all__ = ["show_environments"]


def show_environments() -> None:
    """Print the id of each environment, whether it has a batched form, and the ranges of what it hides."""
    for env_id, spec in sorted(gym.registry.items()):
        if spec.namespace == "ssm_metarl":
            print(env_id + (" (batched)" if spec.vector_entry_point is not None else ""))
            for line in _describe(spec):
                print(f"    {line}")
    print("\nMake one by gymnasium.make(ID), many rows of a batched one by gymnasium.make_vec(ID, num_envs=1024).")


def _describe(spec: EnvSpec) -> list[str]:
    """One line for each hidden parameter, or one that says why there is none."""
    name = spec.kwargs.get("family")
    if name not in FAMILIES:
        return _describe_drawn(spec)
    family = FAMILIES[name]
    if isinstance(family.train, ActuatorDistribution):
        known = {"motors": family.train, "extrapolation": family.extrapolation}
        return [_describe_motors(what, of) for what, of in known.items() if isinstance(of, ActuatorDistribution)]
    train = family.train.parameters
    outside = {} if family.extrapolation is None else family.extrapolation.parameters
    switches = ["the sign switches during the episode"] if spec.kwargs.get("switch") else []
    return [_describe_parameter(one, train[one], outside.get(one)) for one in train] + switches


def _describe_parameter(name: str, train: Marginal, extrapolation: Marginal | None) -> str:
    beyond = "" if extrapolation is None or extrapolation == train else f"; extrapolation {_show(extrapolation)}"
    return f"{name}: {_show(train)}{beyond}"


def _describe_motors(what: str, motors: ActuatorDistribution) -> str:
    """What may be the matter with motors: the parameters of their tasks are entries of a matrix."""
    told = [f"{motors.num_motors} with gains of {_show(motors.gain)}"]
    told += ["reversed or not"] if motors.sign else []
    told += ["in any order"] if motors.permutation else []
    told += ["mixed by a rotation"] if motors.rotation else []
    told += [f"{motors.dead} dead"] if motors.dead else []
    told += [f"offsets of {_show(motors.offset)}"] if motors.offset is not None else []
    told += [f"{' or '.join(map(str, motors.delay))} steps late"] if motors.delay != (0,) else []
    return f"{what}: {', '.join(told)}"


def _show(marginal: Marginal) -> str:
    """Values, or intervals."""
    ((_, numbers),) = marginal.to_dict().items()
    if isinstance(marginal, Choice):
        return " or ".join(f"{number:g}" for number in numbers)
    return " and ".join(f"[{low:.3g}, {high:.3g}]" for low, high in numbers)


def _describe_drawn(spec: EnvSpec) -> list[str]:
    """What an environment outside of the catalogue tells of a drawn task."""
    try:
        env = gym.make(spec)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        return [f"cannot be made here: {error}"]
    hidden = list(env.reset(seed=0)[1].get("task_params", {}))
    env.close()
    return [f"hidden: {', '.join(hidden)}"] if hidden else ["hides nothing"]
