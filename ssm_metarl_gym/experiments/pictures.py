"""Pictures and films of what agents do; they need the extra ``demo``."""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

from ssm_metarl_gym.experiments.evaluation import Policy, Rewards, evaluate
from ssm_metarl_gym.experiments.report import Estimate
from ssm_metarl_gym.files import replacing

__all__ = ["draw_curves", "draw_lines", "draw_returns", "film", "save_film"]

_SMOOTHED_STEPS = 5


def draw_returns(
    estimates: Mapping[str, Mapping[str, Estimate]], means: Mapping[str, Mapping[str, Sequence[float]]], path: Path
) -> None:
    """Draw a mark for each seed, and below it the mean and its interval, for each agent and split.

    Args:
        estimates: The mean return and its interval, by agent and split.
        means: The mean return of each seed, likewise.
        path: Where the picture goes.
    """
    splits = list(next(iter(estimates.values())))
    size = (1.5 + 3.0 * len(splits), 1.2 + 0.5 * len(estimates))
    figure, all_axes = _subplots(len(splits), size)
    for split, axes in zip(splits, all_axes, strict=True):
        for height, (agent, by_split) in enumerate(estimates.items()):
            (mean, low, high), points = by_split[split], means[agent][split]
            errors = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
            axes.errorbar(mean, height, xerr=errors, fmt="o", capsize=3, color=f"C{height % 10}")
            axes.plot(points, [height + 0.25] * len(points), "|", color=f"C{height % 10}")
        axes.set(xlabel="return", title=split, ylim=(len(estimates) - 0.4, -0.6))
    all_axes[0].set_yticks(range(len(estimates)), list(estimates))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")  # the names of agents may be long


def draw_curves(
    curves: Mapping[str, Mapping[str, npt.NDArray[np.float64]]],
    changes: Mapping[str, int],
    path: Path,
    *,
    same_scale: bool = True,
) -> None:
    """Draw the mean reward of the last five steps over the steps of an episode.

    Args:
        curves: The mean reward at each step, ``Float[T]``, by agent and split.
        changes: The step at which the hidden task changes, of those splits in which it does.
        path: Where the picture goes.
        same_scale: Whether all splits have rewards of one kind.
    """
    splits = list(next(iter(curves.values())))
    size = (max(7.0, 4.5 * len(splits)), 3.5)
    figure, all_axes = _subplots(len(splits), size, sharey=same_scale, layout="constrained")
    for split, axes in zip(splits, all_axes, strict=True):
        for agent, by_split in curves.items():
            width = min(_SMOOTHED_STEPS, len(by_split[split]))
            smooth = np.convolve(by_split[split], np.ones(width) / width, mode="valid")
            axes.plot(np.arange(width, width + len(smooth)), smooth, label=agent)
        if split in changes:
            axes.axvline(changes[split], color="black", linestyle=":", label="the hidden task changes")
        axes.set(xlabel="step of the episode", title=split)
    all_axes[0].set_ylabel(f"mean reward of the last {_SMOOTHED_STEPS} steps")
    all_axes[-1].legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw_lines(lines: Mapping[str, Mapping[str, Mapping[float, Estimate]]], x_label: str, path: Path) -> None:
    """Draw mean returns with their intervals, a line for each agent and a part of the picture for each split.

    An agent with the place 0 alone is a level: what needs none of what the axis tells.

    Args:
        lines: The mean return and its interval, by split, agent and place on the axis.
        x_label: What the axis tells.
        path: Where the picture goes.
    """
    figure, all_axes = _subplots(len(lines), (4.5 * len(lines), 3.5), layout="constrained")
    agents = list(dict.fromkeys(agent for by_agent in lines.values() for agent in by_agent))
    for (split, by_agent), axes in zip(lines.items(), all_axes, strict=True):
        for agent, points in by_agent.items():
            color, (means, lows, highs) = f"C{agents.index(agent) % 10}", zip(*points.values(), strict=True)
            if list(points) == [0]:
                axes.axhline(means[0], color=color, linestyle="--", label=agent)
                continue
            axes.plot(list(points), means, "o-", color=color, label=agent)
            axes.fill_between(list(points), lows, highs, color=color, alpha=0.15)
        axes.set(xlabel=x_label, title=split)
        axes.locator_params("x", integer=True)  # dimensions and steps
    all_axes[0].set_ylabel("return")
    all_axes[-1].legend(fontsize="x-small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def film(policy: Policy, env: VecEnv, label: str, *, seed: int) -> list[npt.NDArray[np.uint8]]:
    """Every second frame of one episode at two thirds of its size, with the label and the return so far.

    Args:
        policy: The agent.
        env: An environment of one row with the render mode ``"rgb_array"``.
        label: What the frames call the agent.
        seed: Seeds the environment, as for :func:`evaluate`.
    """
    image, drawing = (_import(f"PIL.{name}", "pillow") for name in ("Image", "ImageDraw"))
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window is needed
    frames: list[npt.NDArray[np.uint8]] = []
    falls: list[bool] = []  # at each step of an environment whose trials go on after a fall

    def shoot(rewards: Rewards, infos: Sequence[dict[str, Any]]) -> None:
        falls.extend(info["restarted"] for info in infos if "restarted" in info)
        if len(rewards[0]) % 2 == 0:
            text = f"{label}: return {sum(rewards[0]):.0f}" + (f", falls {sum(falls)}" if falls else "")
            frame = image.fromarray(env.get_images()[0])
            frame = frame.resize((frame.width * 2 // 3, frame.height * 2 // 3))
            drawing.Draw(frame).text((8, 24), text, fill=(0, 0, 0))
            frames.append(np.asarray(frame))

    evaluate(policy, env, seed=seed, before_step=shoot)
    return frames


def save_film(path: Path, *films: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Save films as one GIF, side by side, as long as the shortest one."""
    image = _import("PIL.Image", "pillow")
    first, *others = (image.fromarray(np.concatenate(frames, axis=1)) for frames in zip(*films, strict=False))
    with replacing(path) as temporary:
        first.save(temporary, save_all=True, append_images=others, duration=40, loop=0)


def _subplots(
    columns: int, size: tuple[float, float], *, sharey: bool = True, **arguments: Any
) -> tuple[Any, Sequence[Any]]:
    # Not by pyplot, which would choose a backend for the whole process and keep the figure.
    figure = _import("matplotlib.figure", "matplotlib").Figure(figsize=size, **arguments)
    return figure, figure.subplots(1, columns, sharey=sharey, squeeze=False)[0]


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'pictures and films need {package}. Install it: python -m pip install "ssm-metarl-gym[demo]"'
        ) from error
