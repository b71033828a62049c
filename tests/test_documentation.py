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
# A comment before it marks a long example, a block of text after it is what it prints.
EXAMPLE = re.compile(
    r"^(?P<slow><!-- slow -->\n+)?```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```$)?", re.M | re.S
)
BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\]\(\s*([^()\s]+)")
DOTTED_NAME = re.compile(r"\bssm_metarl_gym(?:\.\w+)+")
# Files and folders of the repository, named from its root.
PATH = re.compile(r"(?<![\w./-])(?:\.ci|agents|docs|scripts|ssm_metarl_gym|tests|wrappers)/[\w./-]*\w")
NEEDS_MUJOCO = re.compile("HalfCheetah|Ant|Hopper|Walker2d|Reacher|Swimmer")


def examples(page):
    return list(EXAMPLE.finditer((ROOT / page).read_text(encoding="utf-8")))


def runs():
    for page in PAGES:
        found = examples(page)
        if any(not example["slow"] for example in found):
            yield pytest.param(page, False, id=page)
        if any(example["slow"] for example in found):
            yield pytest.param(page, True, id=f"{page} with slow examples", marks=pytest.mark.slow)


def run_examples(page, *, slow):
    """Run the examples of a page one after the other, and compare what they print."""
    namespace = {"__name__": "example"}
    for example in examples(page):
        if slow or not example["slow"]:
            line = example.string.count("\n", 0, example.start("code"))
            # So that a traceback names the line of the page.
            code = compile("\n" * line + example["code"], str(ROOT / page), "exec", dont_inherit=True)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, namespace)  # noqa: S102
            if example["printed"] is not None:
                assert printed.getvalue() == example["printed"], f"{page}, line {line}"


def can_render_mujoco():
    return subprocess.run([sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8)"], check=False).returncode == 0


@pytest.mark.parametrize(("page", "slow"), list(runs()))
def test_the_examples_run_and_print_what_they_say(page, slow, checkout, tmp_path, monkeypatch):
    code = "".join(example["code"] for example in examples(page) if slow or not example["slow"])
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
    run_examples(page, slow=slow)


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
