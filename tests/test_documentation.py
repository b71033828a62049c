"""The documentation: its examples print what they say, what it names exists, and no environment lacks a page."""

import contextlib
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import gymnasium as gym
import pytest

import ssm_metarl_gym  # noqa: F401 - registers the environments

ROOT = Path(__file__).parents[1]
PAGES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES_AT_THE_ROOT = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
IDS = sorted(env_id for env_id in gym.registry if env_id.startswith("ssm_metarl/"))
HEADINGS = [
    "Description",
    "Action space",
    "Observation space",
    "Rewards",
    "Starting state",
    "Episode end",
    "Arguments",
    "Vectorised use",
    "Version history",
]
# A comment before it marks a long example, or one that needs a package which no extra installs; a block of text after
# it is what it prints.
EXAMPLE = re.compile(
    r"^(?:<!-- (?P<mark>slow|needs \w+) -->\n+)?```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```$)?",
    re.M | re.S,
)
BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\]\(\s*([^()\s]+)")
DOTTED_NAME = re.compile(r"\bssm_metarl_gym(?:\.\w+)+")
# Files and folders of the repository, named from its root.
PATH = re.compile(r"(?<![\w./-])(?:\.ci|agents|docs|scripts|ssm_metarl_gym|tests|wrappers)/[\w./-]*\w")
NEEDS_MUJOCO = re.compile("HalfCheetah|Ant|Hopper|Walker2d|Reacher|Swimmer|MujocoEnv")


def examples(page):
    return list(EXAMPLE.finditer((ROOT / page).read_text(encoding="utf-8")))


def runs():
    """The pages, each with nothing but its plain examples and once more with those of each mark."""
    for page in PAGES:
        marks = dict.fromkeys(example["mark"] for example in examples(page))
        for mark in marks:
            name = page if mark is None else f"{page}, {mark}"
            # What packages of others warn of is theirs.
            of_others = pytest.mark.filterwarnings("default")
            marks_of_run = {None: [], "slow": [pytest.mark.slow]}.get(mark, [of_others])
            yield pytest.param(page, mark, id=name, marks=marks_of_run)


def run_examples(page, mark):
    """Run the plain examples of a page and those of a mark one after the other, and compare what they print."""
    namespace = {"__name__": "example"}
    for example in examples(page):
        if example["mark"] in (None, mark):
            line = example.string.count("\n", 0, example.start("code"))
            # So that a traceback names the line of the page.
            code = compile("\n" * line + example["code"], str(ROOT / page), "exec", dont_inherit=True)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, namespace)  # noqa: S102
            if example["printed"] is not None:
                assert printed.getvalue() == example["printed"], f"{page}, line {line}"


def can_render_mujoco():
    return subprocess.run([sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8)"], check=False).returncode == 0


@pytest.mark.parametrize(("page", "mark"), list(runs()))
def test_the_examples_run_and_print_what_they_say(page, mark, checkout, tmp_path, monkeypatch):
    if mark and mark != "slow":
        package = mark.removeprefix("needs ")
        pytest.importorskip(package, reason=f"the example needs {package}, which no extra installs")
    code = "".join(example["code"] for example in examples(page) if example["mark"] in (None, mark))
    if NEEDS_MUJOCO.search(code):
        pytest.importorskip("mujoco", reason="the MuJoCo families need the extra mujoco")
    if "MUJOCO_GL" in code:
        if not os.environ.get("DISPLAY"):
            monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))
        if not can_render_mujoco():
            pytest.skip("no OpenGL backend renders here")
    monkeypatch.chdir(tmp_path)
    # An example may register environments of its own, and define tasks.
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    run_examples(page, mark)


def test_the_links_lead_somewhere(checkout):
    broken = []
    for page in [*PAGES_AT_THE_ROOT, *PAGES]:
        for link in LINK.findall(BLOCK.sub("", (checkout / page).read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            target = (checkout / page).parent / path if path else checkout / page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page}: {link}")
    assert not broken


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_what_is_named_exists(checkout):
    missing = []
    for page in [*PAGES_AT_THE_ROOT, *PAGES]:
        text = LINK.sub("", (checkout / page).read_text(encoding="utf-8"))
        for name in set(DOTTED_NAME.findall(text)):
            try:
                pkgutil.resolve_name(name)
            except (AttributeError, ImportError) as error:
                missing.append(f"{page}: {error}")
        missing += [f"{page}: {path}" for path in set(PATH.findall(text)) if not (checkout / path).exists()]
    assert not missing


def test_names_and_paths_are_found_in_text():
    text = "`ssm_metarl_gym.agents.SSM`, `agents/ssm/scan.py`, a/agents/no.py; ssm_metarl_gym. python scripts/x.py --a"
    assert DOTTED_NAME.findall(text) == ["ssm_metarl_gym.agents.SSM"]
    assert PATH.findall(text) == ["agents/ssm/scan.py", "scripts/x.py"]


def test_every_picture_is_shown(checkout):
    texts = [(checkout / page).read_text(encoding="utf-8") for page in ["README.md", *PAGES]]
    for picture in (checkout / "docs/images").rglob("*.*"):
        assert any(f"/{picture.name})" in text for text in texts), picture


@pytest.mark.parametrize("env_id", IDS)
def test_every_environment_has_a_page_with_all_headings(env_id, checkout):
    name = env_id.removeprefix("ssm_metarl/")
    index = (checkout / "docs/environments/README.md").read_text(encoding="utf-8")
    page = re.search(rf"\[`{re.escape(name)}`\]\(([^)]+)\)", index)
    assert page is not None, f"docs/environments/README.md does not link to a page of {name}"
    text = (checkout / "docs/environments" / page[1]).read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    text = BLOCK.sub("", text)
    assert re.findall("^## (.+)$", text, re.M) == HEADINGS
    assert all(section.strip() for section in re.split("^## .+$", text, flags=re.M))
    time_limit = gym.spec(env_id).max_episode_steps
    assert time_limit is None or f"{time_limit} steps" in text
    assert re.search(r"!\[[^\]]+\]\(\.\./images/environments/\w+\.png\)", text)


def test_there_are_pages_and_examples():
    if not PAGES:
        pytest.skip("needs a checkout")
    assert {"docs/environments/README.md", "docs/tasks.md", "docs/wrappers.md"} <= set(PAGES)
    assert sum(len(examples(page)) for page in PAGES) > 20
