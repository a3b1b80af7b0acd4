"""Makes coverage cheap enough for `make test`; coverage.py loads it in every process that it measures.

Python 3.12 and later report lines through `sys.monitoring`, which costs nothing in files that are not
measured. Python 3.11 calls coverage's trace function for every function of every library, which makes
importing torch take 40 % longer; tracing is suspended there while a library is imported.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from coverage import CoveragePlugin
from coverage.plugin_support import Plugins
from coverage.types import TConfigurable

_OURS = frozenset({"detector", "worker", "deploy", "tests"})


class _MonitoringCore(CoveragePlugin):
    """Selects the `sys.monitoring` core."""

    def configure(self, config: TConfigurable) -> None:
        """Set the option; coverage calls this before it starts."""
        config.set_option("run:core", "sysmon")


class _UntracedLoader(SourceFileLoader):
    """Runs a module's top level without the trace function."""

    def exec_module(self, module: ModuleType) -> None:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            super().exec_module(module)
        finally:
            sys.settrace(tracer)


class _UntracedLibraries(MetaPathFinder):
    """Finds the modules of other people's libraries."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in _OURS or sys.gettrace() is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _UntracedLoader(spec.loader.name, spec.loader.path)
        return spec


def coverage_init(registry: Plugins, _options: dict[str, Any]) -> None:
    """Choose what this Python can do; coverage calls this by its name."""
    if sys.version_info >= (3, 12):
        registry.add_configurer(_MonitoringCore())
    else:
        sys.meta_path.insert(0, _UntracedLibraries())
