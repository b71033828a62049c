"""What docs/environments says of the parameters is what the catalogue and the classes of tasks hold."""

import math
import re
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.tasks import FAMILIES, ActuatorDistribution, Choice, Uniform


def file_name(family):
    """The page of a family."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", family).lower().replace("cart_pole", "cartpole") + ".md"


PAGES = {
    name: file_name(name)
    for name in FAMILIES
    # Their parameters are those of another page, and the sign; those of hidden motors are drawn together.
    if not name.endswith(("Polarity", "Switch", "Actuators"))
}
NAME = re.compile(r"`([\w<>]+)`")
RANGE = re.compile(r"\[([^,\]]+), ([^\]]+)\]")


def number(text):
    return float(text.removesuffix(" pi")) * (math.pi if text.endswith(" pi") else 1.0)


def intervals(cell):
    """The intervals of a cell such as ``[1, 5] or [15, 20]`` or, with a base for the bounds, ``1.5^[-3, 3]``."""
    base = re.match(r"([\d.]+)\^", cell)
    bounds = [tuple(map(number, pair)) for pair in RANGE.findall(cell)]
    return [tuple(float(base[1]) ** bound for bound in pair) if base else pair for pair in bounds]


def rows(page, parameters):
    """The parameters, the second cell, and the cells of training and extrapolation of each row of the table."""
    table = re.search(r"^\| parameters? \|.*?(?=\n\n)", page, re.M | re.S)[0]
    for line in table.splitlines()[2:]:
        first, second, *ranges = (cell.strip() for cell in line.strip("| ").split(" | "))
        patterns = [name.replace("<part>", r"\w+") for name in NAME.findall(first.partition(":")[0])]
        yield [name for name in parameters if any(re.fullmatch(p, name) for p in patterns)], second, ranges


@pytest.mark.parametrize("name", PAGES)
def test_a_page_tells_the_defaults_and_the_ranges_of_every_parameter(name, checkout):
    page = (checkout / "docs/environments" / PAGES[name]).read_text(encoding="utf-8")
    family, defaults = FAMILIES[name], FAMILIES[name].task_type().to_dict()
    told = set()
    for parameters, second, cells in rows(page, defaults):
        told |= set(parameters)
        for parameter in parameters:
            # The pages of multipliers tell what these multiply: their default is 1.
            assert defaults[parameter] == (1.0 if "multiples of" in page else float(second))
            for distribution, cell in zip((family.train, family.extrapolation), cells, strict=True):
                marginal = None if distribution is None else distribution.parameters.get(parameter)
                if marginal is None:
                    assert cell in ("fixed", "none")
                elif isinstance(marginal, Choice):
                    assert cell == "-1 or +1"
                else:
                    assert np.array(marginal.intervals) == pytest.approx(np.array(intervals(cell)), rel=1e-12)
    assert told == set(defaults)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.endswith("Actuators")])
def test_a_page_tells_how_motors_are_drawn(name, checkout):
    page = (checkout / "docs/environments" / file_name(name)).read_text(encoding="utf-8")
    table = {name: cells for name, *cells in re.findall(r"^\| `(\w+)` of [^|]+ \| ([^|]+) \| ([^|]+) \|$", page, re.M)}
    family = FAMILIES[name]
    same = {name: cells[0] for name, cells in table.items() if name != "gain"}
    assert family.train == ActuatorDistribution(
        family.task_type.num_motors(),
        gain=Uniform(*intervals(table["gain"][0])),
        sign=same.get("sign") == "-1 or +1",
        permutation=same.get("permutation") == "swapped or not",
        rotation=same.get("rotation") == "any",
    )
    outside = table["gain"][1]
    outer = Uniform(*intervals(outside)) if "[" in outside else Choice(*map(float, outside.split(" or ")))
    assert family.extrapolation == replace(family.train, gain=outer)
    assert all(table[name][0] == table[name][1] for name in same)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_index_tells_the_time_limit(name, checkout):
    index = (checkout / "docs/environments/README.md").read_text(encoding="utf-8")
    (line,) = [line for line in index.splitlines() if line.startswith(f"| [`{name}-v0`]")]
    assert line.split(" | ")[3] == str(gym.spec(f"ssm_metarl/{name}-v0").max_episode_steps)
