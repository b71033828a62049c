"""What learns: the state-space model, meta-learning, test-time adaptation and the model of the dynamics."""

if __name__ != "ssm_metarl_gym.agents":
    # The folder is also importable as a top-level `agents`, which would make a second copy of every class.
    raise ImportError(f"import ssm_metarl_gym.agents instead of {__name__}.")

from ssm_metarl_gym.agents.adaptation import AdaptationConfig, Adapter, AdapterStats
from ssm_metarl_gym.agents.dynamics import DynamicsModel
from ssm_metarl_gym.agents.features import SSMFeaturesExtractor
from ssm_metarl_gym.agents.meta_maml import MetaMAML
from ssm_metarl_gym.agents.meta_policy import MetaPolicy
from ssm_metarl_gym.agents.meta_trainer import MetaTrainer
from ssm_metarl_gym.agents.policies import CnnSSMPolicy, MultiInputSSMPolicy, SSMPolicy
from ssm_metarl_gym.agents.ssm import SSM
from ssm_metarl_gym.agents.ssm_ppo import SSMPPO

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
