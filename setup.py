"""Compiles ``fastode._C``; everything else about the package is in pyproject.toml.

Environment variables: FASTODE_CUDA=auto|0|1, FASTODE_CUDA_ARCHS="80;90", FASTODE_ISAS="generic avx2", CXX,
CXXFLAGS, LDFLAGS, MAX_JOBS.
``pip install -v`` shows what was decided, ``fastode info`` shows it afterwards.
"""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # an isolated build does not put the project itself on the path

from build_support import BuildError  # noqa: E402
from build_support.extension import build_extension  # noqa: E402


class NinjaBuild(build_ext):
    """Hands the compilation to ninja, then puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Build the one extension of this project."""
        try:
            module = build_extension(ROOT)
        except BuildError as error:
            sys.exit(f"\nfastode cannot be built: {error}\n")  # a plain message instead of a traceback
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replace rather than overwrite: a running process may have the old file mapped.
        target.unlink(missing_ok=True)
        shutil.copy2(module, target)


setup(ext_modules=[Extension("fastode._C", sources=[])], cmdclass={"build_ext": NinjaBuild})
