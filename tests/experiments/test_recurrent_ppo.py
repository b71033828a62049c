import pytest
import torch
from sb3_contrib import RecurrentPPO

from ssm_metarl_gym.experiments.recurrent_ppo import OnePassLstmPolicy, OnePassRecurrentPPO

LEARNING = {"n_steps": 40, "batch_size": 60, "n_epochs": 2, "seed": 0, "policy_kwargs": {"lstm_hidden_size": 8}}


@pytest.mark.parametrize("middle", [0.0, 1.0], ids=["starts only at the front", "one starts in the middle"])
def test_sequences_are_read_as_the_library_reads_them(middle):
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(3, 4)
    starts = torch.tensor([[1.0, 0.0, 0.0], [0.0, middle, 0.0]]).flatten()
    given = (torch.randn(6, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4)), starts, lstm)
    output, states = OnePassLstmPolicy._process_sequence(*given)
    expected, expected_states = RecurrentPPO.policy_aliases["MlpLstmPolicy"]._process_sequence(*given)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(states, expected_states)


def test_it_calls_the_lstm_once_where_sequences_begin_with_episodes():
    class Counting(torch.nn.LSTM):
        calls = 0

        def forward(self, *arguments):
            self.calls += 1
            return super().forward(*arguments)

    lstm = Counting(3, 4)
    states = (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    OnePassLstmPolicy._process_sequence(torch.zeros(10, 3), states, torch.tensor([1.0, *[0.0] * 4] * 2), lstm)
    assert lstm.calls == 1


@pytest.mark.slow
def test_it_learns_what_the_library_does(tmp_path):
    # Episodes end within rollouts, so that sequences of several lengths are read.
    plain = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **LEARNING).learn(400)
    fast = OnePassRecurrentPPO("MlpLstmPolicy", "CartPole-v1", **LEARNING).learn(400)
    for expected, found in zip(plain.policy.parameters(), fast.policy.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    fast.save(tmp_path / "agent.zip")
    assert isinstance(OnePassRecurrentPPO.load(tmp_path / "agent.zip").policy, OnePassLstmPolicy)
