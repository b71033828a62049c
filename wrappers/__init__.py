"""What stands between an environment and an agent: history, the last transition, online adaptation, and SB3."""

if __name__ != "ssm_metarl_gym.wrappers":
    # The folder is also importable as a top-level `wrappers`, which would make a second copy of every class.
    raise ImportError(f"import ssm_metarl_gym.wrappers instead of {__name__}.")

from ssm_metarl_gym.wrappers.action_correction import ActionCorrection
from ssm_metarl_gym.wrappers.history_window import HistoryWindow, VectorHistoryWindow
from ssm_metarl_gym.wrappers.online_adaptation import OnlineAdaptation
from ssm_metarl_gym.wrappers.sb3_env import make_sb3_env
from ssm_metarl_gym.wrappers.sb3_vec_env import SB3VecEnv
from ssm_metarl_gym.wrappers.transition_observation import TransitionObservation, VectorTransitionObservation
from ssm_metarl_gym.wrappers.vector_action_correction import VectorActionCorrection
from ssm_metarl_gym.wrappers.vector_online_adaptation import VectorOnlineAdaptation

__all__ = [
    "ActionCorrection",
    "HistoryWindow",
    "OnlineAdaptation",
    "SB3VecEnv",
    "TransitionObservation",
    "VectorActionCorrection",
    "VectorHistoryWindow",
    "VectorOnlineAdaptation",
    "VectorTransitionObservation",
    "make_sb3_env",
]
