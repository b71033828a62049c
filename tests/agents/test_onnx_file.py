import importlib.util

import pytest
import torch
from torch import nn

from ssm_metarl_gym.agents.onnx_file import write_onnx


def test_without_the_extra_an_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'missing are \[.onnx., .onnxscript.\]. Run pip install "ssm-metarl-gym'):
        write_onnx(tmp_path / "x.onnx", nn.Identity(), {"x": torch.zeros(2)}, ["y"])
    assert not list(tmp_path.iterdir())
