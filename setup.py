"""For pip before 19, which needs this file and no pyproject.toml: with one, it would download a current
setuptools, which no longer runs there. It also copies etc, init and man into the package, where
`targetd --install-files` finds them; everything else is in setup.cfg."""

import os
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithFiles(build_py):
    """Adds targetd/files."""

    copied = ()

    def run(self):
        build_py.run(self)
        self.copied = []
        for folder in ('etc', 'init', 'man'):
            target = os.path.join(self.build_lib, 'targetd', 'files', folder)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target)
            for place, _, names in os.walk(target):
                self.copied += [os.path.join(place, name) for name in names]

    def get_outputs(self, include_bytecode=1):
        return build_py.get_outputs(self, include_bytecode) + list(self.copied)


setup(cmdclass={'build_py': BuildWithFiles})
