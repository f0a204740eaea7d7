"""Which folders make the package: `criterions`, `data`, `models` and `tasks` lie at the root and install inside it."""

from setuptools import find_packages, setup

FOLDERS = ("criterions", "data", "models", "tasks")  # at the root here, inside ofa_plugin once installed

packages = ["ofa_plugin"] + [f"ofa_plugin.{sub}" for sub in find_packages("ofa_plugin")]
for folder in FOLDERS:
    packages += [f"ofa_plugin.{folder}"] + [f"ofa_plugin.{folder}.{sub}" for sub in find_packages(folder)]

setup(packages=packages, package_dir={"ofa_plugin": "ofa_plugin", **{f"ofa_plugin.{f}": f for f in FOLDERS}})
