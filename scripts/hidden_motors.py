"""Keep a policy when motors are wired another way: its actions corrected through a map on them that adapts online.

A PPO policy is trained in the environment as it is, and frozen. Then a hidden matrix lies between its actions and the
motors: each is reversed or not, with a gain of 0.6 to 1.4 (Reacher: and they are swapped or not). In `extrapolation`
the gains are 0.4 or 1.7, in `swapped` the motors are swapped, in `change` there is another matrix from half-way on, in
`reversed`, `dead` and `weak` one motor has -1, 0 or 0.5 times its gain from half-way on, and in `nominal` there is no
matrix.

    as_is      the policy, which knows nothing of it
    told       the policy, with the true matrix undone as far as the motors can (a dead one is left out)
    told_late  the same, but for the first step and the first one after a change: what a step of looking costs
    corrected  the policy behind VectorActionCorrection, whose KalmanAdapter adapts DynamicsModel(adapts="action_map"),
               fitted to the environment as it is

Without --policy-folders the policies must be trained first, by the commands that are printed: three to five CPU minutes
each of HalfCheetah and Reacher, six to fifteen of the others. Every run is a line of results.jsonl, written at once;
the same command goes on, and prints the tables.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import hashlib
import itertools
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from ssm_metarl_gym.agents import DynamicsModel, KalmanAdapter
from ssm_metarl_gym.checks import check_choice
from ssm_metarl_gym.experiments.checks import check_env, check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import estimate, format_markdown
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.saved_agents import SavedAgent, read_run
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.seeding import seed_sequence
from ssm_metarl_gym.tasks import FAMILIES, actuator_task_type
from ssm_metarl_gym.wrappers import VectorActionCorrection, VectorOnlineAdaptation

Floats = npt.NDArray[np.float64]

ENVS = ("HalfCheetah-v5", "Reacher-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
CONDITIONS = ("hidden", "extrapolation", "swapped", "change", "reversed", "dead", "nominal")
FAILURES = {"reversed": -1.0, "dead": 0.0, "weak": 0.5}  # the gain of the motor that fails
ALL_CONDITIONS = (*CONDITIONS, "weak")
AGENTS = ("as_is", "told", "told_late", "corrected")
WINDOW = 50
# To be raised whenever a default of the filter or of the correction changes: what is corrected is then run again.
RULE = 2
# The command that trains a policy, but for its environment, seed and folder. Many environments side by side and large
# minibatches: a third of the time that eight and 64 take. (With either, some of HalfCheetah find a slow gait only.)
HYPERPARAMETERS = (
    '{"n_steps": 128, "batch_size": 512, "n_epochs": 5, "gamma": 0.99, "learning_rate": [1e-3, 0.0], "ent_coef": 0.0}'
)
TRAINING = shlex.split("python scripts/train_ppo.py --policy mlp --timesteps 1500000 --num-envs 64 --hyperparameters")


@dataclass(frozen=True)
class Options:
    """The command line."""

    envs: tuple[str, ...] = option(ENVS[:2], "the environments", choices=ENVS)
    conditions: tuple[str, ...] = option(CONDITIONS, "what is hidden", choices=ALL_CONDITIONS)
    seeds: int = option(3, "number of seeds: of policies, models and matrices", least=1)
    policy_folders: tuple[Path, ...] = option((), "runs of train_ppo.py to take instead, with their seeds")
    transitions: int = option(60_000, "transitions that a model is fitted to", least=100)
    updates: int = option(4_000, "steps of fitting a model", least=1)
    tasks: int = option(24, "hidden matrices of each condition", least=1)
    delay: int = option(0, "steps that all actions come late, of which nobody is told", least=0, below=100)
    largest_delay: int = option(0, "steps that the filter reckons with at most", least=0, below=100)
    mixed: bool = option(False, "tell the filter that motors are mixed or swapped, if anything is hidden")
    output: Path = option(
        Path("output/hidden_motors"),
        "folder of the results, and of policies that are not given",
        check=partial(check_output_folder, file_names=["results.jsonl"]),
    )


def family_of(env_id: str) -> str:
    """The name of the family that hides the motors of an environment."""
    return f"{env_id.removesuffix('-v5')}Actuators"


def num_steps_of(env_id: str) -> int:
    """The length of an episode with hidden motors."""
    return gym.spec(f"ssm_metarl/{family_of(env_id)}-v0").max_episode_steps or 0


def matrix_at(matrices: Floats, t: int, num_steps: int) -> Floats:
    """The matrix at a step: ``Float[... K A A]`` -> ``Float[... A A]``."""
    there: Floats = matrices[..., t * matrices.shape[-3] // num_steps, :, :]
    return there


def draw_matrices(env_id: str, condition: str, num_tasks: int, seed: int) -> Floats:
    """The hidden matrices of a condition, ``Float[N K A A]``, K = 2 where something changes and 1 elsewhere."""
    rng = np.random.default_rng(seed_sequence(seed, "motors", env_id, condition))
    num_actions = FAMILIES[family_of(env_id)].task_type.num_motors()
    shape = (num_tasks, 2 if condition == "change" else 1, num_actions)
    if condition == "nominal":
        return np.broadcast_to(np.eye(num_actions), (*shape, num_actions)).copy()
    if condition in FAILURES:
        gains = np.ones((num_tasks, 2, num_actions))
        gains[np.arange(num_tasks), 1, rng.integers(num_actions, size=num_tasks)] = FAILURES[condition]
        failures: Floats = np.eye(num_actions) * gains[..., None]
        return failures
    outside = condition == "extrapolation"
    gains = rng.choice([0.4, 1.7], size=shape) if outside else rng.uniform(0.6, 1.4, size=shape)
    entries = gains * rng.choice([-1.0, 1.0], size=shape)
    places = np.broadcast_to(np.arange(num_actions), shape)
    if env_id == "Reacher-v5" or condition == "swapped":
        places = rng.permuted(places, axis=-1)
    matrices: Floats = np.eye(num_actions)[places] * entries[..., None]
    return matrices


def invert(matrices: Floats) -> Floats:
    """What undoes matrices ``Float[N A A]``, but for motors that are dead."""
    has_dead = (np.linalg.det(matrices) == 0.0).any()
    inverses: Floats = (np.linalg.pinv if has_dead else np.linalg.inv)(matrices).astype(np.float64)
    return inverses


class Nominal(NamedTuple):
    """A policy, environments as it sees them (a ``VecNormalize``), and the model of the dynamics in them."""

    policy: Any
    env: Any
    model: DynamicsModel


def fit_nominal(agent: SavedAgent, transitions: int, updates: int) -> Nominal:
    """Load a policy, and fit a model to what lies around its behaviour."""
    policy, env = agent.load(), agent.make_env(8)
    torch.manual_seed(agent.seed or 0)
    model = DynamicsModel(env.observation_space, env.action_space, adapts="action_map")
    model.fit(env, policy, num_transitions=transitions, num_updates=updates, seed=agent.seed or 0)
    return Nominal(policy, env, model)


def run(
    name: str,
    env_id: str,
    fit: Callable[[], Nominal],
    matrices: Floats,
    seed: int,
    *,
    delay: int = 0,
    largest_delay: int = 0,
    mixed: bool = False,
) -> Floats:
    """The returns of an agent in each 50 steps, ``Float[N W]``, a row for each of the hidden matrices."""
    nominal = fit()
    rows = gym.make_vec(f"ssm_metarl/{family_of(env_id)}-v0", len(matrices), vectorization_mode="sync")
    low, high = rows.single_action_space.low, rows.single_action_space.high  # type: ignore[attr-defined]
    envs: Any = rows
    if name == "corrected":
        adapter = KalmanAdapter(nominal.model, mixed=mixed, largest_delay=largest_delay)
        envs = VectorActionCorrection(VectorOnlineAdaptation(rows, adapter))
    observations, _ = envs.reset(seed=seed)
    num_steps, task_type = num_steps_of(env_id), actuator_task_type(matrices.shape[-1])
    returns, running = np.zeros((len(matrices), -(-num_steps // WINDOW))), np.ones(len(matrices), dtype=np.bool_)
    for t in range(num_steps):
        present, is_first = matrix_at(matrices, t, num_steps), t * matrices.shape[1] % num_steps == 0
        if is_first:
            rows.set_attr("task", [task_type.from_matrix(matrix, delay=delay) for matrix in present])
        actions, _ = nominal.policy.predict(nominal.env.normalize_obs(observations), deterministic=True)
        if name == "told" or (name == "told_late" and not is_first):
            actions = np.clip((invert(present) @ actions[..., None])[..., 0], low, high).astype(np.float32)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        returns[:, t // WINDOW] += rewards * running
        running &= ~(terminated | truncated)
    envs.close()
    return returns


def find_policies(options: Options) -> list[SavedAgent]:
    """The runs that were given, or else those of all environments and seeds.

    Raises:
        ValueError: A folder is not that of a finished run in one of the environments, two are of one environment and
            seed, or MuJoCo is missing.
    """
    for env_id in options.envs:
        check_env(env_id, {}, "--envs")
    folders = options.policy_folders
    if not folders:
        names = [(env_id, str(seed)) for seed in range(options.seeds) for env_id in options.envs]
        folders = tuple(options.output / "-".join(name) for name in names)
        missing = [(*name, str(folder)) for name, folder in zip(names, folders, strict=True) if not folder.exists()]
        for env_id, seed, folder in missing:
            print(shlex.join([*TRAINING, HYPERPARAMETERS, "--env", env_id, "--seed", seed, "--output", folder]))
        if missing:
            raise ValueError("the policies must be trained first, by the commands above; or give --policy-folders.")
    agents = [read_run(folder) for folder in folders]
    for agent in agents:
        check_choice(f"the environment of {agent.path}", agent.config["env"], options.envs)
    for one, other in itertools.combinations(agents, 2):
        if (one.config["env"], one.seed or 0) == (other.config["env"], other.seed or 0):
            raise ValueError(
                f"policies of one environment must differ in their seeds; got {one.path} and {other.path}, both of "
                f"{one.config['env']} with seed {one.seed}. Give one of them."
            )
    return agents


def all_runs(agents: Sequence[SavedAgent], options: Options) -> Iterator[tuple[dict[str, Any], Callable[[], Floats]]]:
    """What tells the runs apart, and how to get the returns of each."""
    for agent in agents:
        nominal = cache(partial(fit_nominal, agent, options.transitions, options.updates))
        env_id, seed = agent.config["env"], agent.seed or 0
        policy = hashlib.sha256(agent.archive.read_bytes()).hexdigest()[:12]  # another one may have the same seed
        for condition, name in itertools.product(options.conditions, AGENTS):
            key = {"env": env_id, "seed": seed, "condition": condition, "agent": name, "policy": policy}
            key |= {"transitions": options.transitions, "updates": options.updates, "tasks": options.tasks}
            key |= {"rule": RULE} if name == "corrected" else {}
            own = {"largest_delay": options.largest_delay, "mixed": options.mixed} if name == "corrected" else {}
            own = {"delay": options.delay} | own
            key |= own
            matrices = draw_matrices(env_id, condition, options.tasks, seed)
            start = int(seed_sequence(seed, "starts", env_id, condition).generate_state(1)[0]) // 2
            yield key, partial(run, name, env_id, nominal, matrices, start, **own)


def by_agent(rows: Sequence[dict[str, Any]], env_id: str, condition: str, name: str) -> dict[str, Floats]:
    """What ``name`` holds of each agent's runs, ``Float[S N ...]``, of the seeds that all agents have."""
    own = [row for row in rows if (row["env"], row["condition"]) == (env_id, condition)]
    found = {agent: {row["seed"]: row[name] for row in own if row["agent"] == agent} for agent in AGENTS}
    seeds = sorted(set.intersection(*(set(of_agent) for of_agent in found.values())))
    return {agent: np.array([of_agent[seed] for seed in seeds]) for agent, of_agent in found.items()} if seeds else {}


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown: means over seeds and tasks, with 95 % intervals over seeds, and what was gained.

    Args:
        rows: Runs with the same numbers of transitions, updates and tasks.
    """
    lines = []
    for env_id, condition in itertools.product(ENVS, ALL_CONDITIONS):
        returns = by_agent(rows, env_id, condition, "returns")  # S N each
        if not returns:
            continue
        as_is, told, told_late, corrected = (returns[name].mean(axis=1) for name in AGENTS)
        if condition in ("nominal", "dead"):  # what is kept: there is nothing to gain
            gained, what = (1.0 - (as_is - one) / np.abs(as_is) for one in (told_late, corrected)), "kept"
        else:
            gained, what = ((one - as_is) / (told - as_is) for one in (told_late, corrected)), "of the gap"
        cells = [f"{estimate(list(returns[name]), 0):.4g}" for name in AGENTS]
        lines.append([env_id, condition, *cells, *(format_shares(shares, what) for shares in gained)])
    header = ["environment", "motors", *AGENTS, "gained by told_late (each seed)", "gained by corrected (each seed)"]
    return format_markdown(header, lines)


def format_shares(shares: Floats, what: str) -> str:
    """Shares of each seed, ``Float[S]``, in per cent: their mean and interval, what they are, and each of them."""
    each = ", ".join(f"{100.0 * one:.1f}" for one in shares)
    return f"{estimate(100.0 * shares[:, None], 0):.1f} % {what} ({each})"


def format_failures(rows: Sequence[dict[str, Any]]) -> str:
    """The table of one motor that fails half-way: the return of 50 steps before it, and of each 50 after it.

    Args:
        rows: Runs with the same numbers of transitions, updates and tasks.
    """
    lines, most = [], max(num_steps_of(env_id) for env_id in ENVS) // WINDOW // 2
    for env_id, condition in itertools.product(ENVS, FAILURES):
        returns = by_agent(rows, env_id, condition, "each_50_steps")  # S N W each
        for agent in returns:
            own = returns[agent]
            half = own.shape[-1] // 2
            before, after = own[..., :half].mean(axis=-1), own[..., half:]
            cells = [f"{estimate(list(part), 0):.4g}" for part in (before, *np.moveaxis(after, -1, 0))]
            kept = after.sum(axis=-1).mean(axis=1) / returns["told"][..., half:].sum(axis=-1).mean(axis=1)
            lines.append([env_id, condition, agent, *cells, format_shares(kept, "kept")])
    each = [f"{WINDOW * i + 1} to {WINDOW * (i + 1)} after" for i in range(most)]
    return format_markdown(
        ["environment", "one motor", "agent", "before", *each, "after, of what told keeps (each seed)"], lines
    )


@stoppable(lambda: "the same command again goes on with the runs that are missing")
def main(arguments: Sequence[str] | None = None) -> None:
    """Run every agent in every condition, and print the tables."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__, check=find_policies)
    agents = find_policies(options)
    with hold_output(options.output):
        with refusing():
            records = Records(options.output / "results.jsonl")
        rows = []
        for key, get_returns in all_runs(agents, options):
            if found := records.find(**key):
                rows.append(found[0])
                continue
            started = time.process_time()
            returns = get_returns()
            row = key | {"returns": returns.sum(axis=1).round(3).tolist(), "each_50_steps": returns.round(3).tolist()}
            row |= {"cpu_seconds": round(time.process_time() - started, 1)}
            records.add(**row)
            rows.append(row)
            print(*list(key.values())[:4], f"{np.mean(row['returns']):.4g}", flush=True)
        print(format_table(rows), flush=True)
        # Episodes of one window have no before and after; runs of an older version did not tell them apart.
        failures = [row for row in rows if row["condition"] in FAILURES and len(row.get("each_50_steps", [[]])[0]) > 1]
        if failures:
            print(f"\n{format_failures(failures)}", flush=True)


if __name__ == "__main__":
    main()
