"""Old module paths, so that pickles and programs written before the modules were sorted into packages still load."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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


class _MovedModules(MetaPathFinder, Loader):
    """Resolves an old path to the module that took its place: one module under two names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def install() -> None:
    """Consult ``MOVED`` for modules that nothing else finds."""
    sys.meta_path.append(_MovedModules())
