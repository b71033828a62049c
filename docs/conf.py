"""The documentation as a site: ``python -m sphinx -W --keep-going -b html docs output/site``."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import ssm_metarl_gym  # noqa: E402 - found by the line above
import ssm_metarl_gym.agents  # noqa: E402
import ssm_metarl_gym.envs  # noqa: E402
import ssm_metarl_gym.tasks  # noqa: E402
import ssm_metarl_gym.wrappers  # noqa: E402

project = "ssm-metarl-gym"
author = "The ssm-metarl-gym authors"
copyright = author  # noqa: A001 - Sphinx calls it so
release = version = ssm_metarl_gym.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_show_sourcelink = False
html_title = f"{project} {release}"
myst_heading_anchors = 4
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "none"  # docstrings give shapes and units, which types do not
napoleon_use_ivar = True  # what is a property, too, is described once
napoleon_use_rtype = False

# What a page names becomes a link: our own names to the reference, those of others to their documentation.
_SB3: Final = "https://stable-baselines3.readthedocs.io/en/master"
_GYMNASIUM: Final = "https://gymnasium.farama.org"
_TORCH: Final = "https://docs.pytorch.org/docs/stable/generated"
OTHERS: Final = {
    "PPO": f"{_SB3}/modules/ppo.html",
    "SAC": f"{_SB3}/modules/sac.html",
    "DQN": f"{_SB3}/modules/dqn.html",
    "RecurrentPPO": "https://sb3-contrib.readthedocs.io/en/master/modules/ppo_recurrent.html",
    "VecNormalize": f"{_SB3}/guide/vec_envs.html#vecnormalize",
    "VecEnv": f"{_SB3}/guide/vec_envs.html",
    "DummyVecEnv": f"{_SB3}/guide/vec_envs.html#dummyvecenv",
    "SubprocVecEnv": f"{_SB3}/guide/vec_envs.html#subprocvecenv",
    "check_env": f"{_SB3}/common/env_checker.html",
    "policy_kwargs": f"{_SB3}/guide/custom_policy.html",
    "gymnasium.make": f"{_GYMNASIUM}/main/api/registry/",
    "gymnasium.make_vec": f"{_GYMNASIUM}/main/api/registry/",
    "gym.make": f"{_GYMNASIUM}/main/api/registry/",
    "gym.make_vec": f"{_GYMNASIUM}/main/api/registry/",
    "SyncVectorEnv": f"{_GYMNASIUM}/main/api/vector/sync_vector_env/",
    "AsyncVectorEnv": f"{_GYMNASIUM}/main/api/vector/async_vector_env/",
    "Box": f"{_GYMNASIUM}/main/api/spaces/fundamental/",
    "Discrete": f"{_GYMNASIUM}/main/api/spaces/fundamental/",
    "MultiDiscrete": f"{_GYMNASIUM}/main/api/spaces/fundamental/",
    "nn.Module": f"{_TORCH}/torch.nn.Module.html",
    "torch.func.functional_call": f"{_TORCH}/torch.func.functional_call.html",
    "torch.func": "https://docs.pytorch.org/docs/stable/func.html",
}
# Where the classes come from that ours are made of, by the first part of their full names.
BASES: Final = {
    "gymnasium": f"{_GYMNASIUM}/main/api/env/",
    "stable_baselines3": f"{_SB3}/",
    "torch": "https://docs.pytorch.org/docs/stable/nn.html",
}
OWN: Final = {
    name: module.__name__
    for module in (ssm_metarl_gym.tasks, ssm_metarl_gym.envs, ssm_metarl_gym.agents, ssm_metarl_gym.wrappers)
    for name in module.__all__
}
_PAGES_OF: Final = {f"ssm_metarl_gym.{name}": f"api/{name}" for name in ("tasks", "envs", "agents", "wrappers")}

# The page of the playground, which becomes a folder of the site as it is.
PLAYGROUND: Final = ROOT / "ssm_metarl_gym" / "playground" / "site"

_LINK: Final = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


class LinkNames(SphinxPostTransform):
    """Makes links of names in monospace that have a place of their own."""

    default_priority = 400  # before images and highlighting

    def run(self, **_: Any) -> None:
        """Replace literals that stand in running text."""
        for literal in list(self.document.findall(nodes.literal)):
            inside = (nodes.reference, nodes.title, pending_xref, nodes.term)
            if any(isinstance(parent, inside) for parent in _parents(literal)):
                continue
            uri = self._find(literal.astext())
            if uri is not None:
                reference = nodes.reference("", "", internal=not uri.startswith("http"), refuri=uri)
                literal.replace_self(reference)
                reference += literal

    def _find(self, text: str) -> str | None:
        if text in OTHERS:
            return OTHERS[text]
        if text not in OWN:
            return None
        page = _PAGES_OF[OWN[text]]
        if page == self.env.docname:
            return f"#{OWN[text]}.{text}"
        return f"{self.app.builder.get_relative_uri(self.env.docname, page)}#{OWN[text]}.{text}"


def _parents(node: nodes.Node) -> list[nodes.Node]:
    parents = []
    while (parent := node.parent) is not None:
        parents.append(parent)
        node = parent
    return parents


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Take two pages from the root of the repository, and make links to what is no page plain text."""
    from_root = {"changelog": ROOT / "CHANGELOG.md", "overview": ROOT / "README.md"}
    folder = from_root[docname].parent if docname in from_root else (ROOT / "docs" / docname).parent
    text = from_root[docname].read_text(encoding="utf-8") if docname in from_root else source[0]

    def rewrite(match: re.Match[str]) -> str:
        words, target = match.groups()
        path, anchor = target.partition("#")[::2]
        if re.match("[a-z]+:", target) or not path:
            return match.group()
        place = (folder / path).resolve()
        if place == PLAYGROUND / "index.html":
            return f'<a href="{"../" * docname.count("/")}playground/index.html">{words}</a>'
        page = {"README.md": "/overview.md", "CHANGELOG.md": "/changelog.md"}.get(str(place.relative_to(ROOT)))
        if page is None and place.is_relative_to(ROOT / "docs") and place.suffix == ".md":
            page = f"/{place.relative_to(ROOT / 'docs')}"
        return words if page is None else f"[{words}]({page}{'#' if anchor else ''}{anchor})"

    text = _LINK.sub(rewrite, text)
    source[0] = re.sub(r"!\[([^\]]*)\]\(docs/", r"![\1](/", text)


def link_base(app: Sphinx, env: Any, node: pending_xref, content: nodes.Node) -> nodes.reference | None:
    """A class of another package, named as the base of one of ours."""
    uri = BASES.get(str(node.get("reftarget", "")).partition(".")[0])
    if uri is None:
        return None
    reference = nodes.reference("", "", internal=False, refuri=uri)
    reference += content
    return reference


def read_headings(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Headings in docstrings of environments, which are Markdown as those of Gymnasium's are."""
    lines[:] = [
        part for line in lines for part in ([f".. rubric:: {line[3:]}", ""] if line.startswith("## ") else [line])
    ]


def copy_playground(app: Sphinx, error: Exception | None) -> None:
    """The playground, beside the pages of the site."""
    if error is None and app.builder.format == "html":
        shutil.copytree(PLAYGROUND, Path(app.outdir) / "playground", dirs_exist_ok=True)


def setup(app: Sphinx) -> None:
    """Sphinx calls it."""
    app.add_post_transform(LinkNames)
    app.connect("source-read", read_source)
    app.connect("missing-reference", link_base)
    app.connect("autodoc-process-docstring", read_headings)
    app.connect("build-finished", copy_playground)
