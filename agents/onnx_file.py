"""Networks as ONNX files, which other runtimes than PyTorch read."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ssm_metarl_gym.files import replacing

__all__ = ["write_onnx"]

_NEEDED: Final = ("onnx", "onnxscript")


def write_onnx(path: str | Path, network: nn.Module, inputs: Mapping[str, Tensor], output_names: Sequence[str]) -> None:
    """Write what a network computes as an ONNX file, aside first; a missing folder is made.

    The first dimension of every input and output is free. Weights are inside, so that the file is one.

    Args:
        path: Where to.
        network: The network, in evaluation mode, on the CPU; its ``forward`` takes ``*inputs``.
        inputs: Examples of its inputs by name, in their order, of two rows each.
        output_names: The names of its outputs, in their order; no input has one of them.

    Raises:
        ImportError: The extra ``export`` is not installed.
        OSError: It cannot be written.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"to write ONNX files, the packages {list(_NEEDED)} must be installed; missing are {missing}. "
            'Run pip install "ssm-metarl-gym[export]".'
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    num_rows = torch.export.Dim("num_rows")
    with _traceable(), torch.no_grad():
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(output_names),
            dynamic_shapes={"inputs": tuple({0: num_rows} for _ in inputs)},
        )
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)  # type: ignore[union-attr]


@contextmanager
def _traceable() -> Iterator[None]:
    """Without the checks of distributions, which look at values, and without what the exporter says of other code."""
    logger = logging.getLogger("torch.onnx")
    level, checks = logger.level, Distribution._validate_args
    logger.setLevel(logging.ERROR)
    Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Distribution.set_default_validate_args(checks)
        logger.setLevel(level)
