"""How fast adaptation is, against what one would take without it, in ratios of CPU time on one thread.

    VectorOnlineAdaptation  steps of many rows at once, against a loop over as many single OnlineAdaptation wrappers;
                            where all layers adapt, beside it the least that such steps take: the products of matrices,
                            and weights that are read and written once a gradient step
    Adapter.adapt           one call, against a loop of forward, backward and step written by hand, with torch.optim.SGD
                            and without an optimizer, as lean as it can be
    VectorActionCorrection  steps of the whole wrapper, against the VectorOnlineAdaptation that it stands on; of a Box
                            of actions also without the effect gate, for which a twin adapts as well
    PPO, predictions        Stable-Baselines3's PPO on predictions that VectorOnlineAdaptation shows, against plain PPO:
                            rollouts and epochs

The model is a network of two layers of 64 and 32 hyperbolic tangents, meta-trained for a second; adaptation takes 3
steps on a window of 16 transitions. The sides run in turns, a short chunk of calls each, so that whatever else slows
the machine slows all; shown are the median over all pairs of neighbouring chunks, and 10 and 90 % quantiles.

With --calls, the script shows instead that so many calls change nothing: how far the weights went, relative to the
radius of the trust region, the memory that the process held and how long calls took, early on and at the end.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import copy
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from torch import Tensor, nn
from torch.nn import functional as F

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, MetaTrainer
from ssm_metarl_gym.experiments.checks import check_output_file
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.dynamics_models import make_model
from ssm_metarl_gym.experiments.measuring import Comparison, compare_in_turns, resident_memory, show_comparisons
from ssm_metarl_gym.experiments.report import print_markdown
from ssm_metarl_gym.experiments.runs import find_versions
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json
from ssm_metarl_gym.wrappers import OnlineAdaptation, SB3VecEnv, VectorActionCorrection, VectorOnlineAdaptation

CARTPOLE, PENDULUM = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumPolarity-v0"
WINDOW, STEPS = 16, 3
META_UPDATES, META_STREAMS = 100, 64
ROLLOUT_LENGTH, NUM_EPOCHS = 128, 10  # of PPO, whose rollouts are four minibatches
# The windows are full after as many steps, and episodes no longer begin all at once.
SETTLING_STEPS = 50
PACKAGES = ("torch", "gymnasium", "numpy", "stable-baselines3")
# What we aim for: how many times as fast we are.
ROW_TARGETS = {64: 40.0, 1024: 100.0}
ADAPTER_TARGET = 1 / 1.5
CORRECTION_TARGET = 1 / 2
PPO_TARGET = 0.4

ADAPTS: Final = ("last_layer", "all")
Envs = gym.vector.VectorEnv[Any, Any, Any]


@dataclass(frozen=True)
class Options:
    """The command line."""

    rows: tuple[int, ...] = option((64, 1024), "rows at once", least=1, below=10**6)
    ppo_rows: int = option(64, "rows that PPO learns on", least=1, below=10**6)
    pairs: int = option(9, "pairs of chunks of each comparison", least=1)
    seed: int = option(0, "seeds models, tasks and actions", least=0)
    calls: int = option(0, "show instead what so many calls do", least=0)
    output: Path | None = option(None, "JSON file for the results", check=check_output_file)

    def __post_init__(self) -> None:
        """Check that there are calls enough to divide into tenths."""
        if 0 < self.calls < 100:
            raise ValueError(f"--calls must be >= 100, or 0 for none; got {self.calls}.")


def train(env_id: str, adapts: Any, seed: int) -> tuple[MetaTrainer, Adapter]:
    """A meta-trained model, and its adapter."""
    torch.manual_seed(seed)
    trainer = MetaTrainer(env_id, make_model(env_id, adapts), num_streams=META_STREAMS, seed=seed).learn(META_UPDATES)
    return trainer, Adapter(trainer.model, replace(trainer.adaptation_config(), max_steps_per_call=STEPS))


def make_envs(env_id: str, num_rows: int, adapter: Adapter, **options: Any) -> VectorOnlineAdaptation:
    """Rows that adapt."""
    envs = gym.make_vec(env_id, num_envs=num_rows, autoreset_mode="SameStep")
    return VectorOnlineAdaptation(envs, adapter, window=WINDOW, **options)


def steps_of(envs: Envs | list[OnlineAdaptation], seed: int) -> Callable[[], object]:
    """A function that takes the next step in all rows, be they batched or one after the other."""
    if isinstance(envs, list):
        space: Any = gym.vector.utils.batch_space(envs[0].action_space, len(envs))
        step: Callable[[Any], object] = functools.partial(step_each, envs)
        for i, env in enumerate(envs):
            env.reset(seed=seed + i)
    else:
        space, step = envs.action_space, envs.step
        envs.reset(seed=seed)
    space.seed(seed)
    actions = itertools.cycle([space.sample() for _ in range(16)])  # the same ones, again and again
    for _ in range(SETTLING_STEPS):
        step(next(actions))
    return lambda: step(next(actions))


def step_each(envs: list[OnlineAdaptation], actions: Any) -> None:
    """Step one environment after the other."""
    for env, action in zip(envs, actions, strict=True):
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()


def compare_rows(options: Options) -> Iterator[Comparison]:
    """Many rows at once against one after the other."""
    for adapts, num_rows in itertools.product(ADAPTS, options.rows):
        _, adapter = train(CARTPOLE, adapts, options.seed)
        singles = [OnlineAdaptation(gym.make(CARTPOLE), adapter, window=WINDOW) for _ in range(num_rows)]
        name = "VectorOnlineAdaptation"
        sides = {
            "a loop of OnlineAdaptation": steps_of(singles, options.seed),
            name: steps_of(make_envs(CARTPOLE, num_rows, adapter), options.seed),
        }
        if adapts == "all":
            sides["products and weights alone"] = make_products(adapter.model, num_rows)
        targets = {name: ROW_TARGETS[num_rows]} if num_rows in ROW_TARGETS else None
        yield from compare_in_turns(sides, options.pairs, case={"case": f"{adapts}, {num_rows} rows"}, targets=targets)


def make_products(model: nn.Module, num_rows: int) -> Callable[[], None]:
    """The products of matrices of one step of all rows, in parts that a cache holds, and a pass over their weights.

    Forwards before each gradient step and after the last one, and backwards in each.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    size = min(num_rows, 64)
    weights = [torch.randn(size, layer.in_features, layer.out_features) for layer in layers]
    gradients = [torch.randn_like(weight) for weight in weights]
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    outputs, slopes = ([torch.randn(size, WINDOW, width) for width in widths] for _ in range(2))

    def forwards() -> None:
        for i, weight in enumerate(weights):
            torch.bmm(outputs[i], weight, out=outputs[i + 1])

    def backwards() -> None:
        for i, weight in reversed(list(enumerate(weights))):
            torch.bmm(outputs[i].mT, slopes[i + 1], out=gradients[i])
            if i:
                torch.bmm(slopes[i + 1], weight.mT, out=slopes[i])
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.sub_(gradient, alpha=1e-9)

    def call() -> None:
        for _ in range(math.ceil(num_rows / size)):
            for _ in range(STEPS):
                forwards()
                backwards()
            forwards()

    return call


def compare_adapter(options: Options) -> Iterator[Comparison]:
    """One call against what it does at least: gradient steps, and the loss after them."""
    for adapts, num_steps, is_lean in itertools.product(ADAPTS, (1, STEPS), (False, True)):
        sides = make_sides(adapts, num_steps, is_lean=is_lean, seed=options.seed)
        targets = None if is_lean else {"Adapter.adapt": ADAPTER_TARGET}
        case = {"case": f"{adapts}, steps: {num_steps}"}
        yield from compare_in_turns(sides, options.pairs, case=case, targets=targets)


def make_sides(adapts: Any, num_steps: int, *, is_lean: bool, seed: int) -> dict[str, Callable[[], float]]:
    """The loop by hand and the adapter, on one batch and with so small steps that none is clipped."""
    _, adapter = train(CARTPOLE, adapts, seed)
    adapter = Adapter(adapter.model, replace(adapter.cfg, lr=1e-4, grad_clip_norm=1e6, max_steps_per_call=num_steps))
    rng = np.random.default_rng(seed)
    states = adapter.model.encode(rng.normal(size=(WINDOW, 4)), rng.integers(2, size=WINDOW))
    targets = torch.as_tensor(rng.normal(size=(WINDOW, 4)), dtype=torch.float32)
    return {
        "no optimizer" if is_lean else "torch.optim.SGD": make_loop(
            copy.deepcopy(adapter.model), adapter.cfg, states, targets, is_lean=is_lean
        ),
        "Adapter.adapt": functools.partial(adapter.adapt, F.mse_loss, {"states": states, "targets": targets}),
    }


def make_loop(
    model: nn.Module, cfg: AdaptationConfig, states: Tensor, targets: Tensor, *, is_lean: bool
) -> Callable[[], float]:
    """Gradient steps as one writes them, with an optimizer, or as lean as they can be."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=cfg.lr)

    def take_step() -> None:
        optimizer.zero_grad()
        F.mse_loss(model(states), targets).backward()
        optimizer.step()

    def take_lean_step() -> None:
        gradients = torch.autograd.grad(F.mse_loss(model(states), targets), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=cfg.lr)

    def call() -> float:
        for _ in range(cfg.max_steps_per_call):
            (take_lean_step if is_lean else take_step)()
        with torch.no_grad():
            return F.mse_loss(model(states), targets).item()

    return call


def compare_correction(options: Options) -> Iterator[Comparison]:
    """Corrected actions against the adaptation alone."""
    for env_id, num_rows in itertools.product((CARTPOLE, PENDULUM), options.rows):
        trainer, adapter = train(env_id, "last_layer", options.seed)
        name, reference = "VectorActionCorrection", trainer.reference()
        gates = {name: {}, f"{name}, no effect gate": {"effect_gate": math.inf}} if env_id == PENDULUM else {name: {}}
        sides = {"VectorOnlineAdaptation": steps_of(make_envs(env_id, num_rows, adapter), options.seed)}
        for side, gate in gates.items():
            corrected = VectorActionCorrection(make_envs(env_id, num_rows, adapter), reference, **gate)
            sides[side] = steps_of(corrected, options.seed)
        case = {"case": f"{env_id.split('/')[1]}, {num_rows} rows"}
        targets = {name: CORRECTION_TARGET}
        yield from compare_in_turns(sides, options.pairs, case=case, targets=targets)


def compare_ppo(options: Options) -> Iterator[Comparison]:
    """PPO with adapted predictions against PPO without them."""
    num_rows = options.ppo_rows
    _, adapter = train(CARTPOLE, "last_layer", options.seed)

    def turn(envs: Envs) -> Callable[[], object]:
        num_steps = ROLLOUT_LENGTH * num_rows
        batch = {"n_steps": ROLLOUT_LENGTH, "batch_size": num_steps // 4, "n_epochs": NUM_EPOCHS}
        agent = PPO("MlpPolicy", SB3VecEnv(envs), seed=options.seed, device="cpu", **batch)
        return lambda: agent.learn(num_steps, reset_num_timesteps=False)

    sides = {
        "PPO": turn(gym.make_vec(CARTPOLE, num_envs=num_rows, autoreset_mode="SameStep")),
        "PPO, predictions": turn(make_envs(CARTPOLE, num_rows, adapter, observe_predictions=True)),
    }
    case = {"case": f"{num_rows} rows"}
    yield from compare_in_turns(sides, options.pairs, case=case, targets={"PPO, predictions": PPO_TARGET})


def follow_calls(options: Options) -> Iterator[dict[str, Any]]:
    """What many calls do to one adapter, with batches that are too large or not finite among them, and to many rows."""
    _, adapter = train(CARTPOLE, "last_layer", options.seed)
    adapter = Adapter(adapter.model, replace(adapter.cfg, trust_region_eps=0.1))
    envs = make_envs(CARTPOLE, max(options.rows), adapter)
    generator = torch.Generator().manual_seed(options.seed)
    batches = itertools.cycle(
        {"states": torch.randn(WINDOW, 32, generator=generator), "targets": size * torch.ones(WINDOW, 4)}
        for size in (0.1, -1.0, 1e3, 1.0, torch.nan, 0.1, -1e20, 10.0)
    )
    yield follow("Adapter", lambda: adapter.adapt(F.mse_loss, next(batches)), lambda: adapter.stats, options.calls)
    step = steps_of(envs, options.seed)
    yield follow(f"{envs.num_envs} rows", step, lambda: envs.adapter.stats, options.calls // envs.num_envs)


def follow(what: str, call: Callable[[], object], stats: Callable[[], Any], num_calls: int) -> dict[str, Any]:
    """The greatest distance from the source after any call; memory and CPU seconds of the first and last tenth."""
    farthest, seconds, memory = 0.0, [], []
    for _ in range(10):
        started = time.process_time()
        for _ in range(max(1, num_calls // 10)):
            call()
            farthest = max(farthest, float(np.max(np.asarray(stats().distance))))
        seconds.append(time.process_time() - started)
        memory.append(resident_memory())
    return {"what": what, "calls": num_calls, "farthest": farthest, "mib": memory, "seconds": seconds}


def show_calls(options: Options) -> list[dict[str, Any]]:
    """Follow calls, line by line as results come in."""
    shown: list[dict[str, Any]] = []

    def rows() -> Iterator[list[str]]:
        for row in follow_calls(options):
            shown.append(row)
            ends = [f"{row[name][i]:.1f}" for name in ("mib", "seconds") for i in (0, -1)]
            yield [row["what"], str(row["calls"]), f"{row['farthest']:.6f}", *ends]

    columns = ["of", "calls", "farthest, of 0.1", "MiB after 1/10", "MiB at the end", "first 1/10, s", "last 1/10, s"]
    print_markdown(columns, rows())
    return shown


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, or follow calls, line by line as results come in."""
    options = parse_options(Options, arguments, description=__doc__)
    started = time.perf_counter()
    torch.set_num_threads(1)
    versions = find_versions(PACKAGES)  # which the ratios depend on
    print(f"{', '.join(f'{name} {version}' for name, version in versions.items())}\n", flush=True)
    comparisons = (compare_rows, compare_adapter, compare_correction, compare_ppo)
    if options.calls:
        rows = show_calls(options)
    else:
        rows = show_comparisons(itertools.chain.from_iterable(each(options) for each in comparisons), ["case"])
    seconds = round(time.perf_counter() - started, 1)
    print(f"\n{seconds:.0f} s")
    if options.output is not None:
        write_json(
            options.output, {"calls" if options.calls else "rows": rows, "versions": versions, "seconds": seconds}
        )


if __name__ == "__main__":
    main()
