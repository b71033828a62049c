"""A probe of memory: an environment that only an agent which remembers can solve."""

from collections.abc import Mapping
from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import check_integer, shown
from ssm_metarl_gym.envs.arguments import check_reset_options

__all__ = ["RepeatObservationEnv"]

# Pixels of a square in the picture.
_SQUARE: Final = 32


class RepeatObservationEnv(gym.Env[npt.NDArray[np.float32], Any]):
    """Every step shows a symbol; the action must name the one shown ``delay`` steps before it.

    The symbols are drawn independently, so what is shown says nothing about what was: an agent without memory can only
    guess. Nothing is hidden but the past, there is no task to infer. After RepeatPrevious of POPGym (Morad et al. 2023,
    https://arxiv.org/abs/2303.01859), which deals the suits of a deck of cards and counts wrong answers as -1.

    ## Action space
    ``Discrete(num_symbols)``: the number of a symbol.

    ## Observation space
    ``Box(0, 1, (num_symbols,), float32)``: the present symbol, one-hot.

    ## Rewards
    ``1 / num_steps`` for the action on the observation ``o_t`` if it names ``o_{t-delay}``, else 0. For ``t < delay``
    (``o_0`` is what the reset shows) there is nothing to repeat: 0 whatever the action. So the return is the share of
    right answers: 1 is perfect, ``1 / num_symbols`` is guessing.

    ## Starting state
    Every symbol of the episode is drawn uniformly.

    ## Episode end
    Termination after ``delay + num_steps`` steps, of which the last ``num_steps`` are graded. The final observation is
    one symbol more.

    ## Arguments
    * ``delay``: how long to remember, in steps; with 0 the action names what it sees, which takes no memory.
    * ``num_symbols``: how many symbols there are.
    * ``num_steps``: how many steps are graded.
    * ``render_mode``: ``"rgb_array"``, or ``None``.

    ``info`` is empty. The attribute ``symbols``, ``Int64[delay + num_steps + 1]``, holds those of the whole episode.

    Example:
        >>> env = gym.make("ssm_metarl/RepeatObservation-v0", delay=1, num_steps=2)
        >>> first, _ = env.reset(seed=0)
        >>> second, reward, *_ = env.step(0)  # nothing to repeat yet
        >>> reward, env.step(first.argmax())[1], env.step(second.argmax())[1]
        (0.0, 0.5, 0.5)

    ## Version history
    * v0: initial version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 - as in Gymnasium

    def __init__(
        self, *, delay: int = 4, num_symbols: int = 4, num_steps: int = 64, render_mode: str | None = None
    ) -> None:
        check_integer("delay", delay, least=0)
        check_integer("num_symbols", num_symbols, least=2)
        check_integer("num_steps", num_steps)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array'; got {shown(render_mode)}.")
        self.delay = int(delay)
        self.num_symbols = int(num_symbols)
        self.num_steps = int(num_steps)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0.0, 1.0, (self.num_symbols,), np.float32)
        self.action_space = spaces.Discrete(self.num_symbols)
        self.symbols: npt.NDArray[np.int64] | None = None
        self._time = 0

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode with new symbols. There are no options."""
        check_reset_options(options, ())
        super().reset(seed=seed)
        self.symbols = self.np_random.integers(self.num_symbols, size=self.delay + self.num_steps + 1)
        self._time = 0
        return one_hot(self.symbols[0], self.num_symbols), {}

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Grade the action and show the next symbol."""
        if not self.action_space.contains(action):
            raise ValueError(f"an action must be an int from 0 to {self.num_symbols - 1}; got {shown(action)}.")
        end = self.delay + self.num_steps
        if self.symbols is None or self._time == end:
            raise gym.error.ResetNeeded("reset() must be called before step(), and after the end of an episode.")
        right = self._time >= self.delay and action == self.symbols[self._time - self.delay]
        self._time += 1
        observation = one_hot(self.symbols[self._time], self.num_symbols)
        return observation, 1.0 / self.num_steps if right else 0.0, self._time == end, False, {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The last symbols, a column each: on the left the one to be named, on the right the present one.

        Returns:
            ``UInt8[H W 3]``, or None without a render mode.
        """
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode. Give gym.make(..., render_mode="rgb_array").')
            return None
        if self.symbols is None:
            raise gym.error.ResetNeeded("reset() must be called before render().")
        return draw(self.symbols[: self._time + 1], self.delay, self.num_symbols)


def one_hot(symbols: Any, num_symbols: int) -> npt.NDArray[np.float32]:
    """What an agent sees of symbols ``Int64[*shape]``: ``Float32[*shape num_symbols]``."""
    return np.asarray(np.asarray(symbols)[..., None] == np.arange(num_symbols), dtype=np.float32)


def draw(symbols: npt.NDArray[np.int64], delay: int, num_symbols: int) -> npt.NDArray[np.uint8]:
    """The picture of the symbols shown so far, ``Int64[t + 1]``: ``UInt8[H W 3]``."""
    shown = symbols[-delay - 1 :]
    squares = np.zeros((num_symbols, delay + 1), dtype=np.uint8)
    squares[shown, delay + 1 - len(shown) + np.arange(len(shown))] = 255
    gray = np.kron(squares, np.ones((_SQUARE, _SQUARE), dtype=np.uint8))
    return np.repeat(gray[..., None], 3, axis=2)
