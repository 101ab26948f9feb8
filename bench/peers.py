"""The peers of each kind of case."""

from fastae.bench import cases, epoch_peers, many_peers, step_peers
from fastae.bench.peer import Peer


def peers_of(case: "cases.Case") -> dict[str, Peer]:
    """The peers of the case's kind by name, with fastae first."""
    return {"step": step_peers, "epoch": epoch_peers, "many": many_peers}[case.kind].PEERS


def available(case: "cases.Case", names: list[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """The peers among `names` (by default all) that can run, without fastae, and for each other one why it cannot."""
    known = peers_of(case)
    chosen = [name for name in known if name != "fastae"] if names is None else names
    missing = {name: why for name in chosen if (why := known[name].why_not(case))}
    if "fastae bf16" in chosen and case.dtype == "bfloat16":
        missing["fastae bf16"] = "is fastae itself"
    return [name for name in chosen if name not in missing], missing
