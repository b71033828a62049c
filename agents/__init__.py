"""What learns, one room for each kind of it.

An ``ssm`` remembers; ``meta_learning`` and ``adaptation`` change any module; ``models`` are what they change here;
``meta_training`` brings them to the environments. The public names are those of this package.
"""

if __name__ != "ssm_metarl_gym.agents":
    # The folder is also importable as a top-level `agents`, which would make a second copy of every class.
    raise ImportError(f"import ssm_metarl_gym.agents instead of {__name__}.")

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.config import AdaptationConfig, AdapterStats
from ssm_metarl_gym.agents.adaptation.kalman import KalmanAdapter
from ssm_metarl_gym.agents.adaptation.rls import RecursiveLeastSquares
from ssm_metarl_gym.agents.meta_learning.maml import MetaMAML
from ssm_metarl_gym.agents.meta_training.trainer import MetaTrainer
from ssm_metarl_gym.agents.models.action_distributions import Categorical, DiagonalGaussian
from ssm_metarl_gym.agents.models.distillation import distill
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy
from ssm_metarl_gym.agents.ssm.export import export_onnx
from ssm_metarl_gym.agents.ssm.features_extractor import SSMFeaturesExtractor, WindowExtractor
from ssm_metarl_gym.agents.ssm.model import SSM, SSMLayer
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
    "KalmanAdapter",
    "MetaMAML",
    "MetaPolicy",
    "MetaTrainer",
    "MultiInputSSMPolicy",
    "RecursiveLeastSquares",
    "SSMFeaturesExtractor",
    "SSMPolicy",
    "distill",
    "export_onnx",
]

# Archives and pickles name a class by its module. Were that one inside, it could never move: so all say that they are
# of this one, those too that are not public but lie within objects of public classes.
for _name in (*__all__, *(one.__name__ for one in (Categorical, DiagonalGaussian, SSMLayer, WindowExtractor))):
    globals()[_name].__module__ = __name__
