"""A progress bar for the terminal (rich, imported when one is shown)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastae.training.history import Epoch


@contextmanager
def progress_bar(wanted: bool, epochs: int, rows: int) -> Iterator[Callable[[Epoch], None]]:
    """A bar on stderr, moved by the function it gives; where it is not `wanted` that function does nothing."""
    if not wanted:
        yield lambda epoch: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=epochs, said="")
        shown = 0.0

        def show(epoch: Epoch) -> None:
            nonlocal shown
            # an update costs as much as a small epoch
            if epoch.seconds - shown > 0.05 or epoch.number == epochs:
                shown = epoch.seconds
                said = f"loss {epoch.loss:.6g}"
                if epoch.validation_loss is not None:
                    said += f", validation {epoch.validation_loss:.6g}"
                said += f", {epoch.number * rows / epoch.seconds:,.0f} rows/s"
                bar.update(task, completed=epoch.number, said=said)

        yield show
