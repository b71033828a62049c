"""What learns: the state-space model, meta-learning, test-time adaptation and the model of the dynamics."""

if __name__ != "ssm_metarl_gym.agents":
    # The folder is also importable as a top-level `agents`, which would make a second copy of every class.
    raise ImportError(f"import ssm_metarl_gym.agents instead of {__name__}.")

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.config import AdaptationConfig, AdapterStats
from ssm_metarl_gym.agents.meta_learning.maml import MetaMAML
from ssm_metarl_gym.agents.meta_training.trainer import MetaTrainer
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy
from ssm_metarl_gym.agents.ssm.features_extractor import SSMFeaturesExtractor
from ssm_metarl_gym.agents.ssm.model import SSM
from ssm_metarl_gym.agents.ssm.policies import CnnSSMPolicy, MultiInputSSMPolicy, SSMPolicy
from ssm_metarl_gym.agents.ssm.ppo import SSMPPO

__all__ = [
    "SSM",
    "SSMPPO",
    "AdaptationConfig",
    "Adapter",
    "AdapterStats",
    "CnnSSMPolicy",
    "DynamicsModel",
    "MetaMAML",
    "MetaPolicy",
    "MetaTrainer",
    "MultiInputSSMPolicy",
    "SSMFeaturesExtractor",
    "SSMPolicy",
]
