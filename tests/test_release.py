"""What a user installs: the wheel that is built from the sdist holds everything, and passes the tests elsewhere."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ssm_metarl_gym

pytestmark = pytest.mark.slow

# Neither the checkout nor anything else of the caller's may come before what is installed.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}
PRINT_ORIGINS = """if True:
    import ssm_metarl_gym.agents, ssm_metarl_gym.wrappers, sys
    print(*(sys.modules[name].__file__ for name in sys.modules if name.startswith("ssm_metarl_gym")), sep="\\n")
"""


def run(*command, cwd):
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True)  # noqa: S603
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(checkout, tmp_path_factory):
    """The sdist, and the wheel that was built from it."""
    # Of a copy, because building leaves metadata beside the sources.
    copy, dist = tmp_path_factory.mktemp("sources") / "checkout", tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "output")
    shutil.copytree(checkout, copy, symlinks=True, ignore=ignored)
    run(sys.executable, "-m", "build", "--outdir", dist, copy, cwd=dist)
    return dist


@pytest.fixture(scope="module")
def wheel(dist):
    (wheel,) = dist.glob("*.whl")
    return wheel


def test_the_wheel_holds_every_module_and_nothing_else(wheel, checkout):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if name.startswith(f"ssm_metarl_gym-{ssm_metarl_gym.__version__}.dist-info/")}
    folders = {
        "ssm_metarl_gym": "ssm_metarl_gym",
        "agents": "ssm_metarl_gym/agents",
        "wrappers": "ssm_metarl_gym/wrappers",
    }
    sources = {
        f"{shipped_as}/{path.relative_to(checkout / folder).as_posix()}"
        for folder, shipped_as in folders.items()
        for path in (checkout / folder).rglob("*.py")
    }
    assert len(sources) > 15
    assert names - metadata == sources | {"ssm_metarl_gym/py.typed"}
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


def test_the_sdist_holds_what_is_needed_to_test_it(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"CHANGELOG.md", "LICENSE", "README.md", "constraints.txt", "pyproject.toml", "tests/conftest.py"}


def test_the_installed_wheel_passes_the_tests_from_another_directory(wheel, checkout, tmp_path):
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    scripts = venv / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    site_packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies are those of this interpreter. Its site-packages come after the venv's own, and as their .pth
    # files are not read there, an editable installation of the checkout is not seen.
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))

    shutil.copytree(checkout / "tests", elsewhere / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(checkout / "pyproject.toml", elsewhere)  # the options of pytest
    origins = run(python, "-c", PRINT_ORIGINS, cwd=elsewhere).splitlines()
    assert len(origins) > 15
    assert all(Path(origin).is_relative_to(site_packages) for origin in origins)
    assert " passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=elsewhere)
