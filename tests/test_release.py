"""What a user installs: whole from every kind of checkout, and a wheel that works elsewhere."""

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

LINKS = ("agents", "wrappers")
# Neither the checkout nor anything else of the caller's may come before what is installed.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}
PRINT_ORIGINS = """if True:
    import ssm_metarl_gym.agents, ssm_metarl_gym.wrappers, sys
    print(*(sys.modules[name].__file__ for name in sys.modules if name.startswith("ssm_metarl_gym")), sep="\\n")
"""


def run(*command, cwd, fails=False):
    """What a command prints, and what it complains of where it is to fail."""
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True)  # noqa: S603
    assert (done.returncode != 0) == fails, f"{' '.join(command)}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout + done.stderr * fails


def copy_checkout(checkout, target, *, links="links"):
    """Copy what git tracks, with the links as ``"links"``, as ``"plain files"`` or as ``"copies"`` of the folders."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "output")
    shutil.copytree(checkout, target, symlinks=links != "copies", ignore=ignored)
    if links == "plain files":
        for name in LINKS:
            link = target / "ssm_metarl_gym" / name
            link.unlink()
            link.write_text(f"../{name}")  # what git and unpacked zip files leave
    return target


def build(source, target, *distributions):
    """Build a wheel or an sdist of the source, or both; as pip does, in an environment of its own."""
    run(sys.executable, "-m", "build", *distributions, "--outdir", target, source, cwd=source.parent)
    return target


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def names_in(sdist):
    with tarfile.open(sdist) as archive:
        assert not any(member.issym() or member.islnk() for member in archive)
        return {name.partition("/")[2] for name in archive.getnames()}


def make_venv(path):
    """Make a virtual environment that holds nothing but sees the dependencies here; its interpreter and its folder."""
    run(sys.executable, "-m", "venv", "--without-pip", path, cwd=path.parent)
    python = path / ("Scripts" if os.name == "nt" else "bin") / "python"
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run(python, "-c", script, cwd=path).strip())
    # The dependencies are those of this interpreter. Its site-packages come after the venv's own, and as their .pth
    # files are not read there, an editable installation of the checkout is not seen.
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    return python, site_packages


def install(python, *arguments, cwd):
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def dist(checkout, tmp_path_factory):
    """The sdist, and the wheel that was built from it."""
    source = copy_checkout(checkout, tmp_path_factory.mktemp("sources") / "checkout")
    return build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(dist):
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(dist):
    (sdist,) = dist.glob("*.tar.gz")
    return sdist


def test_the_wheel_holds_every_module_byte_for_byte_and_nothing_else(wheel, checkout):
    shipped = contents(wheel)
    names = set(shipped)
    metadata = {name for name in names if name.startswith(f"ssm_metarl_gym-{ssm_metarl_gym.__version__}.dist-info/")}
    folders = {
        "ssm_metarl_gym": "ssm_metarl_gym",
        "agents": "ssm_metarl_gym/agents",
        "wrappers": "ssm_metarl_gym/wrappers",
    }
    sources = {
        f"{shipped_as}/{path.relative_to(checkout / folder).as_posix()}": path.read_bytes()
        for folder, shipped_as in folders.items()
        for path in (checkout / folder).rglob("*.py")
    }
    assert len(sources) > 15
    page = checkout / "ssm_metarl_gym/playground/site"
    sources |= {f"ssm_metarl_gym/playground/site/{path.name}": path.read_bytes() for path in page.iterdir()}
    assert names - metadata == sources.keys() | {"ssm_metarl_gym/py.typed"}
    assert all(shipped[name] == source for name, source in sources.items())
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


def test_the_sdist_holds_what_is_needed_to_test_it_and_each_module_once(sdist):
    names = names_in(sdist)
    assert names >= {
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "agents/__init__.py",
        "constraints.txt",
        "pyproject.toml",
        "setup.py",
        "tests/conftest.py",
        "wrappers/__init__.py",
    }
    assert not any(name.startswith(tuple(f"ssm_metarl_gym/{link}" for link in LINKS)) for name in names)


@pytest.mark.parametrize("links", ["links", "plain files", "copies"])
def test_every_kind_of_checkout_builds_the_same(links, wheel, sdist, checkout, tmp_path):
    source = copy_checkout(checkout, tmp_path / "checkout", links=links)
    dist = build(source, tmp_path / "dist", "--sdist", "--wheel")
    (own_wheel,), (own_sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert contents(own_wheel) == contents(wheel)
    assert names_in(own_sdist) == names_in(sdist)


@pytest.mark.parametrize("links", ["links", "plain files"])
def test_both_kinds_of_checkout_can_be_installed_for_editing(links, checkout, tmp_path):
    source = copy_checkout(checkout, tmp_path / "checkout", links=links)
    python, site_packages = make_venv(tmp_path / "venv")
    install(python, "-e", source, cwd=tmp_path)
    origins = run(python, "-W", "error", "-c", PRINT_ORIGINS, cwd=tmp_path).splitlines()
    assert len(origins) > 15
    assert all(Path(origin).is_relative_to(source) for origin in origins)
    if links == "links":
        # Type checkers follow a path, but no import hook.
        (path_file,) = site_packages.glob("*ssm_metarl_gym*.pth")
        assert path_file.read_text().split() == [str(source)]
    refused = run(python, "-c", "import agents", cwd=source, fails=True)
    assert refused.endswith("ImportError: import ssm_metarl_gym.agents instead of agents.\n")


def test_half_a_checkout_is_refused(checkout, tmp_path):
    source = copy_checkout(checkout, tmp_path / "checkout", links="plain files")
    shutil.rmtree(source / "wrappers")
    complaint = run(sys.executable, "-m", "build", "--wheel", source, cwd=tmp_path, fails=True)
    assert "ssm_metarl_gym.wrappers cannot be installed: the folder wrappers must lie beside setup.py" in complaint
    assert "Install from a whole copy of the repository." in complaint


def test_the_installed_wheel_passes_tests_of_each_room_from_another_directory(wheel, checkout, tmp_path):
    python, site_packages = make_venv(tmp_path / "venv")
    install(python, "--no-index", wheel, cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(checkout / "tests", elsewhere / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(checkout / "pyproject.toml", elsewhere)  # the options of pytest
    origins = run(python, "-c", PRINT_ORIGINS, cwd=elsewhere).splitlines()
    assert len(origins) > 15
    assert all(Path(origin).is_relative_to(site_packages) for origin in origins)
    # Its modules are those of the checkout, which passes all tests: what is asked here is whether they find each other.
    rooms = ("test_package.py", "agents/test_seed_api.py", "agents/test_archives.py", "envs/test_registration.py",
             "tasks/test_task.py", "wrappers/test_kept_policies.py", "experiments/test_evaluation.py")  # fmt: skip
    tests = [f"tests/{room}" for room in rooms]
    assert " passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=elsewhere)
