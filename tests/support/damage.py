"""Damaged files: every place of a file's metadata, and what may stand there instead."""

import copy
import json

from safetensors.numpy import save_file

from fastae import storage

WRONG = (None, True, -1, 10**400, "text", [[0]], {})


def _places(content, path=()):
    yield path
    members = content.items() if isinstance(content, dict) else enumerate(content[:2])
    for name, member in members:
        yield from _places(member, (*path, name)) if isinstance(member, (dict, list)) else [(*path, name)]


def damages(path):
    """Yield the place and the value of each damage, after it was done to the file at `path`, which lost its digest.

    A value of ... stands for a place that was removed.
    """
    stored = storage.read(path)
    whole = json.loads(json.dumps({**stored.about, "format": 1}))
    for place in list(_places(whole))[1:]:
        for value in (..., *WRONG):
            about = copy.deepcopy(whole)
            parent = about
            for name in place[:-1]:
                parent = parent[name]
            if value is ...:
                del parent[place[-1]]
            else:
                parent[place[-1]] = value
            save_file(stored.tensors, path, metadata={"fastae": json.dumps(about)})
            yield place, value
