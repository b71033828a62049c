import pytest
import torch

from ssm_metarl_gym.experiments.dynamics_models import load_weights, make_model, save_weights

ENV_ID = "ssm_metarl/PendulumPolarity-v0"


@pytest.mark.parametrize("adapts", ["last_layer", "all"])
def test_it_predicts_a_change_of_the_observation(adapts):
    model = make_model(ENV_ID, adapts)
    assert model.adapts == adapts
    observations, actions = torch.zeros(2, 3).numpy(), torch.zeros(2, 1).numpy()
    assert model(model.encode(observations, actions)).shape == (2, 3)


def test_weights_and_normalisation_come_back(tmp_path):
    model = make_model(ENV_ID)
    model.target_scale.fill_(0.3)
    save_weights(model, tmp_path / "model.pt")
    again = load_weights(ENV_ID, tmp_path / "model.pt")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_arguments_of_the_environment_decide_its_spaces(tmp_path):
    env_id, env_kwargs = "ssm_metarl/PointActuators-v0", {"dimension": 3}
    model = make_model(env_id, **env_kwargs)
    assert (model.observation_dim, model.action_space.shape) == (6, (3,))
    save_weights(model, tmp_path / "model.pt")
    assert load_weights(env_id, tmp_path / "model.pt", **env_kwargs).observation_dim == 6
