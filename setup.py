"""What pyproject.toml cannot say: where the packages lie, in a checkout with symbolic links and in one without.

The files of ``ssm_metarl_gym.agents`` and ``ssm_metarl_gym.wrappers`` lie in the folders ``agents`` and ``wrappers``
beside this file, and two links show them inside the package. With the links everything lies where it is imported from,
so an editable installation is a plain path, which mypy and pyright follow. Without them (the default on Windows, an
unpacked zip file, the sdist) each folder is mapped to its package.
"""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "ssm_metarl_gym"

packages = find_packages(include=[PACKAGE, f"{PACKAGE}.*"])
package_dir = {"": "."}
for folder in ("agents", "wrappers"):
    if f"{PACKAGE}.{folder}" in packages:
        continue
    if not Path(folder, "__init__.py").is_file():
        raise SystemExit(
            f"{PACKAGE}.{folder} cannot be installed: the folder {folder} must lie beside setup.py; "
            f"got {Path(folder).absolute()}, which holds no package. Install from a whole copy of the repository."
        )
    package_dir[f"{PACKAGE}.{folder}"] = folder
    packages += [f"{PACKAGE}.{found}" for found in find_packages(include=[folder, f"{folder}.*"])]

setup(packages=packages, package_dir=package_dir)
