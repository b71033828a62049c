import gc
import importlib.util
import sys

import pytest

from ssm_metarl_gym.experiments import measuring


@pytest.fixture(scope="module")
def load_script(checkout):
    """A function that imports a script by its name, as a module that the scripts themselves do not know."""
    loaded = []

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_under_test", checkout / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look for the module of a class
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        sys.modules.pop(name, None)  # which was loaded twice


@pytest.fixture
def short_chunks(monkeypatch):
    """Measurements of one call a chunk, after no search for garbage, which takes longer than that."""
    monkeypatch.setattr(measuring, "CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(gc, "collect", lambda: 0)
