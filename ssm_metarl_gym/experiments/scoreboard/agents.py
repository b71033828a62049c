"""The rows of a table: what each agent is, sees and is trained on."""

from dataclasses import dataclass
from typing import Final

__all__ = ["AGENTS", "CORRECTED", "NOMINAL", "TRAINED", "Agent", "adapts", "agent_of", "is_own", "uses_meta_model"]


@dataclass(frozen=True)
class Agent:
    """What is trained, and on what.

    Attributes:
        description: What it is, in a line.
        algorithm: The algorithm of Stable-Baselines3, of sb3-contrib or of this package; ``"ProMP"`` for what adapts
            its weights to a task in episodes before the one that counts.
        policy: Its policy.
        observation: What it sees, as for :func:`make_sb3_env`.
        context: Whether it is told what is hidden.
        predictions: Whose predictions it sees: of a model whose last layer or whose layers all adapt, of one that never
            does, or of none.
        switch_probability: How probable another task is at every step of the training.
        teacher: The row that it learns to act like; None for one that learns from rewards.
        is_dear: Whether it takes so long to learn that a full run has fewer seeds of it.
    """

    description: str
    algorithm: str = "PPO"
    policy: str = "MlpPolicy"
    observation: str = "plain"
    context: str = "hidden"
    predictions: str = "none"
    switch_probability: float = 0.0
    teacher: str | None = None
    is_dear: bool = False

    @property
    def sees_predictions(self) -> bool:
        """Whether it sees what a model predicts."""
        return self.predictions != "none"

    @property
    def adapts_before(self) -> bool:
        """Whether its weights adapt to a task in episodes before the one that counts."""
        return self.algorithm == "ProMP"

    @property
    def remembers(self) -> bool:
        """Whether its policy keeps a memory from step to step, and so learns from whole sequences."""
        return self.algorithm in ("SSMPPO", "OnePassRecurrentPPO")


NOMINAL: Final = Agent("PPO, trained in the nominal physics alone")
# What stands between the policy of the nominal physics and the environment; None for nothing.
CORRECTED: Final[dict[str, str]] = {
    "as_is": "PPO, trained in the nominal physics alone",
    "corrected_filter": "the same, its actions corrected by a Kalman filter on a map of the actions",
    "corrected_gradients": "the same, corrected by a meta-learned model that adapts by gradient steps",
    "corrected_rls": "the same, corrected by recursive least squares on that model's last layer",
}
TRAINED: Final[dict[str, Agent]] = {
    "domain_randomisation": Agent("PPO on the training tasks, from the plain observation"),
    "told": Agent("PPO on the training tasks that is told what is hidden", context="visible"),
    "one_transition": Agent("PPO on the training tasks that also sees the last transition", observation="transition"),
    "window_ssm": Agent(
        "PPO that reads the last 16 of them with a state-space model", observation="window", is_dear=True
    ),
    "ssm_ppo": Agent("a recurrent state-space model (`SSMPPO`)", "SSMPPO", "SSMPolicy", "transition"),
    "ssm_ppo_switching": Agent(
        "the same, trained where what is hidden changes now and then",
        "SSMPPO",
        "SSMPolicy",
        "transition",
        switch_probability=0.01,
    ),
    "recurrent_ppo": Agent(
        "sb3-contrib's LSTM (`RecurrentPPO`)", "OnePassRecurrentPPO", "MlpLstmPolicy", "transition", is_dear=True
    ),
    "student": Agent(
        "a state-space model that reads the last 16 of them, and learned to act like `told`",
        observation="window",
        teacher="told",
        is_dear=True,
    ),
    "meta_policy": Agent(
        "a meta-learned policy (ProMP), after a policy gradient step on ten episodes of the task", "ProMP"
    ),
    "frozen_predictions": Agent(
        "PPO that sees what a model predicts that never adapts", predictions="frozen", is_dear=True
    ),
    "adapted_predictions": Agent(
        "PPO that sees what the adapted model predicts", predictions="last_layer", is_dear=True
    ),
    "adapted_predictions_all": Agent("the same, of a model whose layers all adapt", predictions="all", is_dear=True),
}
AGENTS: Final[dict[str, str]] = CORRECTED | {name: agent.description for name, agent in TRAINED.items()}


def is_own(row: str) -> bool:
    """Whether a row is a user's, ``"module:function"``."""
    return ":" in row


def adapts(row: str) -> bool:
    """Whether a model adapts in a row."""
    if row in CORRECTED:
        return row != "as_is"
    return agent_of(row).predictions in ("last_layer", "all")


def agent_of(row: str) -> Agent:
    """The agent that a row is of: that of the nominal physics where it is corrected, and one that sees as much."""
    return TRAINED.get(row, NOMINAL)


def uses_meta_model(row: str) -> bool:
    """Whether a row needs a meta-learned model of the dynamics."""
    return row in ("corrected_gradients", "corrected_rls") or agent_of(row).sees_predictions
