"""Whether an environment is a family of tasks, and what is wrong with it where it is not."""

import copy
import importlib
import itertools
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import env_checker as gymnasium_checker
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common import env_checker as sb3_checker

from ssm_metarl_gym.envs.hidden_task import HiddenTask, TaskParameter

__all__ = ["check_family", "find_maker"]

_Env: TypeAlias = gym.Env[Any, Any]
_NUM_STEPS: Final = 60  # of an episode that is to show a difference
_NUM_EPISODES: Final = 3
_NUM_TASKS: Final = 16  # so that a sign, drawn anew, is hardly the same in all
_NOTE: Final = "note: "  # before what may be as it should


def find_maker(name: str) -> Callable[[], _Env]:
    """What makes the environment that a user named.

    Args:
        name: ``"module:Class"``, any callable of a module that makes one, or the id of a registered environment.

    Raises:
        ValueError: There is no such module, or nothing of that name in it and no environment of that id.
    """
    module_name, _, attribute = name.rpartition(":")
    if module_name:
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:  # whatever a user's module raises
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{module_name} must be a module that can be imported; it cannot: {reason}.") from error
        maker = getattr(module, attribute, None)
        if callable(maker):
            return maker  # type: ignore[no-any-return]
        if "/" not in attribute and attribute not in gym.registry:
            raise ValueError(
                f"{module_name} must have a class or a function {attribute or 'after the colon'} that makes an "
                f"environment, or register an environment of that id; it has none. Use module:Class."
            )
    try:
        spec = gym.spec(attribute)
    except gym.error.Error as error:
        raise ValueError(
            f"the environment must be module:Class or the id of a registered one; got {name} ({error}). "
            "Write module:id where a module of yours registers it."
        ) from None
    return lambda: gym.make(spec)


def check_family(make: Callable[[], _Env]) -> bool:
    """Print a line for each thing that a family of tasks must do, and say whether it does all of them.

    What is only noted may be right: the friction of what never touches the floor changes nothing.

    Args:
        make: Makes the environment, without arguments.
    """
    try:
        make().close()
    except Exception as error:
        print(f"FAIL  it can be made\n          {type(error).__name__}: {error}")
        if before := _bases_before_hidden_task(make):
            print(f"          HiddenTask must be the first of its bases; before it there is {before[0]}.")
        elif isinstance(error, TypeError):
            print("          It is made without arguments. Where it takes some, as a family, name its id (module:id),")
            print("          or a function of yours that gives them.")
        print("      Nothing else can be checked.")
        return False
    is_family = True
    for name, check in _CHECKS.items():
        try:
            problems = list(check(make))
        except Exception as error:  # whatever a user's environment raises is what is wrong with it
            problems = [f"{type(error).__name__}: {error}"]
        has_failed = not all(problem.startswith(_NOTE) for problem in problems)
        print("FAIL" if has_failed else "note" if problems else "ok  ", name, sep="  ")
        for problem in problems:
            print(f"          {problem.removeprefix(_NOTE)}")
        is_family &= not has_failed
        if check in _NEEDED and has_failed:
            print("      Nothing else can be checked.")
            break
    return is_family


def _pass_gymnasiums_checker(make: Callable[[], _Env]) -> Iterator[str]:
    env = make()
    # It advises against the wrappers of gym.make.
    while isinstance(env, OrderEnforcing | PassiveEnvChecker | TimeLimit):
        env = env.env
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice; what it demands it raises
        # It makes another one by the spec in order to close it, and many a wrapper has none.
        gymnasium_checker.check_env(env, skip_render_check=True, skip_close_check=env is not env.unwrapped)
    yield from ()


def _pass_sb3s_checker(make: Callable[[], _Env]) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sb3_checker.check_env(make())
    yield from ()


def _tell_the_task(make: Callable[[], _Env]) -> Iterator[str]:
    env = make()
    _, at_reset = env.reset(seed=0)
    env.action_space.seed(0)
    *_, at_step = env.step(env.action_space.sample())
    for where, info in (("reset", at_reset), ("step", at_step)):
        if missing := [key for key in ("task_id", "task_params") if key not in info]:
            yield f"the info of {where} must hold task_id and task_params; missing are {missing}. Subclass HiddenTask."


def _keep_spaces(make: Callable[[], _Env]) -> Iterator[str]:
    env = make()
    for what in ("action_space", "observation_space"):
        of_tasks = []
        for seed in range(_NUM_TASKS):
            env.reset(seed=seed)
            of_tasks.append(copy.deepcopy(getattr(env, what)))  # as a task may change it in place
        if differing := [space for space in of_tasks if space != of_tasks[0]]:
            yield (
                f"{what} must be the same in every task; got {of_tasks[0]} and {differing[0]}. Let the task change "
                "what an action does, and not which there are."
            )


def _repeat_by_seed(make: Callable[[], _Env]) -> Iterator[str]:
    one, other = make(), make()
    if names := _global_generators_drawn_from(one):
        yield f"it must draw from self.np_random alone; it drew from the global generator of {' and '.join(names)}."
        return
    # Seeds in another order: what is drawn before the seed counts then comes from another one.
    firsts = {seed: _episode(one, seed=seed) for seed in range(_NUM_TASKS)}
    seconds = {seed: _episode(other, seed=seed) for seed in reversed(range(_NUM_TASKS))}
    pairs = [(firsts[seed], seconds[seed]) for seed in range(_NUM_TASKS)]
    if differing := [(first[0], second[0]) for first, second in pairs if first[0] != second[0]]:
        yield "one seed must give one task; got {} and {}. Draw it in reset, after the seed.".format(*differing[0])
    elif not all(_equal(first[1], second[1]) for first, second in pairs):
        yield (
            "one seed and the same actions must give one episode; they gave two. Draw from self.np_random alone, and "
            "let reset leave nothing of the episodes before."
        )


def _draw_tasks(make: Callable[[], _Env]) -> Iterator[str]:
    env = make()
    if not _varying(env):
        yield f"tasks must differ between seeds; {_NUM_TASKS} of them gave one. Draw the task in reset."
    env.reset(seed=0)
    tasks = [env.reset()[1]["task_params"] for _ in range(_NUM_TASKS)]
    if all(task == tasks[0] for task in tasks):
        yield (
            f"tasks must differ between episodes; {_NUM_TASKS} resets without a seed gave one. Draw the task in every "
            "reset, whether it has a seed or not."
        )


def _take_a_task(make: Callable[[], _Env]) -> Iterator[str]:
    env = make()
    tasks = _draw(env)
    _, info = env.reset(seed=11, options={"task": tasks[-1]})
    if info["task_params"] != tasks[-1]:
        yield f"reset(options={{'task': ...}}) must choose the task; asked for {tasks[-1]}, got {info['task_params']}."


def _depend_on_each_parameter(make: Callable[[], _Env]) -> Iterator[str]:
    env = make()
    base, varying, num_without = _draw(env)[0], _varying(env), 0
    for name, (low, high) in varying.items():
        before, changed, after = (_episodes(env, base | {name: value}) for value in (low, high, low))
        if not _equal(before, after):
            yield (
                f"{name} must leave nothing behind; back at {low:.3g} the episode is another one. Compute each "
                "quantity from the task and the default, not from its present value."
            )
        elif _equal(before, changed):
            num_without += 1
            yield (
                f"{_NOTE}{name} changed nothing that random actions show: {low:.3g} and {high:.3g} gave the same "
                f"{len(before)} observations. Is all that follows from it renewed, as by a DerivedQuantity?"
            )
    if num_without == len(varying) > 0 and not _brings_into_force(env.unwrapped):
        yield (
            "one parameter at least must change the physics; none did, none is a TaskParameter, and there is no "
            "_apply_task. Let one of these bring them into force."
        )


def _bases_before_hidden_task(make: Callable[[], _Env]) -> list[str]:
    """The environments among the bases of a class that stand before ``HiddenTask``, and never call it."""
    if not (isinstance(make, type) and issubclass(make, HiddenTask)):
        return []
    before = make.__mro__[1 : make.__mro__.index(HiddenTask)]
    return [one.__name__ for one in before if issubclass(one, gym.Env) and not issubclass(one, HiddenTask)]


def _brings_into_force(env: _Env) -> bool:
    """Whether something is there that lets a task change the physics, though nobody saw that it does."""
    if not isinstance(env, HiddenTask):
        return True
    parameters = (getattr(type(env), name, None) for name in env.task_type.parameter_names())
    return type(env)._apply_task is not HiddenTask._apply_task or any(
        isinstance(each, TaskParameter) for each in parameters
    )


def _global_generators_drawn_from(env: _Env) -> list[str]:
    """The modules whose global generators an episode draws from."""
    with _seeded_global_generators():
        before = _global_states()
        _episode(env, seed=0)
        after = _global_states()
    return [name for name, state in before.items() if pickle.dumps(state) != pickle.dumps(after[name])]


def _global_states() -> dict[str, Any]:
    return {"numpy.random": np.random.get_state(), "random": random.getstate()}  # noqa: NPY002 - others draw from it


@contextmanager
def _seeded_global_generators() -> Iterator[None]:
    """Let what draws from global generators draw the same each time, and leave them as they were."""
    before = _global_states()
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(before["numpy.random"])  # noqa: NPY002
        random.setstate(before["random"])


def _draw(env: _Env) -> list[dict[str, float]]:
    """The parameters of a few drawn tasks."""
    return [dict(env.reset(seed=seed)[1]["task_params"]) for seed in range(_NUM_TASKS)]


def _varying(env: _Env) -> dict[str, tuple[float, float]]:
    """The parameters that differ between drawn tasks, with the least and the greatest value of each."""
    tasks = _draw(env)
    bounds = {name: (min(task[name] for task in tasks), max(task[name] for task in tasks)) for name in tasks[0]}
    return {name: (low, high) for name, (low, high) in bounds.items() if low < high}


def _episode(
    env: _Env, *, seed: int, task: dict[str, float] | None = None
) -> tuple[dict[str, float], list[npt.NDArray[Any]]]:
    """The parameters of a task, and observations and rewards of the first steps of an episode in it."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed, options=None if task is None else {"task": task})
    seen = [np.ravel(observation)]
    for _ in itertools.repeat(None, _NUM_STEPS):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(np.append(np.ravel(observation), float(reward)))
        if terminated or truncated:
            break
    return dict(info["task_params"]), seen


def _episodes(env: _Env, task: dict[str, float]) -> list[npt.NDArray[Any]]:
    """Observations and rewards of a few episodes in a task."""
    with _seeded_global_generators():
        return [row for seed in range(_NUM_EPISODES) for row in _episode(env, seed=seed, task=task)[1]]


def _equal(one: list[npt.NDArray[Any]], other: list[npt.NDArray[Any]]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


_CHECKS: Final[dict[str, Callable[[Callable[[], _Env]], Iterator[str]]]] = {
    "Gymnasium's checker": _pass_gymnasiums_checker,
    "Stable-Baselines3's checker": _pass_sb3s_checker,
    "info tells the task": _tell_the_task,
    "spaces do not depend on the task": _keep_spaces,
    "a seed gives one task and one episode": _repeat_by_seed,
    "episodes differ in their tasks": _draw_tasks,
    "a task can be chosen": _take_a_task,
    "each parameter changes the physics, and back": _depend_on_each_parameter,
}
# Without which the others would tell of something else.
_NEEDED: Final = (_tell_the_task, _keep_spaces)
