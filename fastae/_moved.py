"""Old module paths, so that pickles and programs written before the modules were sorted into packages still load."""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "fastae.blocks": "fastae.distributed.partitions",
    "fastae.checkpoint": "fastae.training.checkpoint",
    "fastae.distributed.blocks": "fastae.distributed.dask.partitions",
    "fastae.distributed.engine": "fastae.distributed.dask.engine",
    "fastae.history": "fastae.training.history",
    "fastae.model_files": "fastae.estimator.model_files",
    "fastae.mpi": "fastae.distributed.mpi",
    "fastae.rows": "fastae.data.row_source",
    "fastae.shard": "fastae.distributed.worker_part",
    "fastae.warmup": "fastae.engine.warmup",
}


class _MovedModules:
    """Resolves an old path to the module that took its place: one module under two names.

    A finder and loader without the base classes of ``importlib.abc``, whose import takes longer than fastae's.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        loader: Any = self
        return ModuleSpec(fullname, loader) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make the module that ``exec_module`` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def install() -> None:
    """Consult ``MOVED`` for modules that nothing else finds."""
    sys.meta_path.append(_MovedModules())
