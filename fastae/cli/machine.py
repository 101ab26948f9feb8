"""The commands that concern this machine: check-gradients, doctor, demo and warmup."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fastae.cli.shared import Activation, Json, check_output, command, print_facts


@command("fastae check-gradients --features 20 --hidden 6 --activation tanh")
def check_gradients(
    features: Annotated[int, typer.Option(min=1, help="Number of features.")] = 12,
    hidden: Annotated[int, typer.Option(min=1, help="Number of code units.")] = 5,
    activation: Annotated[
        Activation, typer.Option(help="Activation of all layers but the last, which is linear.")
    ] = "sigmoid",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the weights and the rows.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare gradients with finite differences.

    Prints the relative error of each parameter's gradient, by the reference and by the engine, against central
    differences of the cost. The exit status is 1 if one of them is large.
    """
    from fastae.gradient_check import check_network
    from fastae.network import Network

    network = Network((features, hidden, features, features), (activation, activation, "identity"))
    errors = check_network(network, seed)
    good = all(max(of.values()) < (1e-3 if name == "float32" else 1e-6) for name, of in errors.items())
    if as_json:
        print_facts({**errors, "good": good}, True)
    else:
        typer.echo(f"{'':4}" + "".join(f"{name:>11}" for name in errors))
        for name in errors["reference"]:
            typer.echo(f"{name:4}" + "".join(f"{of[name]:11.1e}" for of in errors.values()))
    if not good:
        raise typer.Exit(1)


@command("fastae doctor")
def doctor(as_json: Json = False) -> None:
    """Show versions, CPU, threads and the kernel cache.

    Includes the register tiles chosen for the CPU and the directory that holds the compiled kernels.
    """
    from fastae.cli.doctor import report

    print_facts(report(), as_json)


@command("fastae demo")
def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Number of epochs over the 1797 digits.")] = 300,
    hidden: Annotated[int, typer.Option(min=1, help="Number of code units.")] = 32,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the weights and the shuffling.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Image file for the reconstructions; needs matplotlib.")] = Path(
        "fastae-demo.png"
    ),
) -> None:
    """Train on handwritten digits and compare with NumPy.

    The 1797 digits ship with scikit-learn. The reference in NumPy then takes the same steps.
    """
    from rich.console import Console

    from fastae.cli import demo as demonstration

    has_matplotlib = find_spec("matplotlib") is not None
    if has_matplotlib:
        check_output("--out", out)
    result = demonstration.run(hidden=hidden, epochs=epochs, seed=seed, progress=True)
    console = Console()
    console.print(demonstration.table(result))
    if has_matplotlib:
        from fastae.plots import save_reconstructions
        from fastae.storage import written_whole

        try:
            with written_whole(out) as temporary:
                save_reconstructions(temporary, result.X, result.xhat, shape=(8, 8))
        except (OSError, ValueError) as error:  # disk full, no permission, unknown format
            raise typer.BadParameter(str(error), param_hint="--out") from None
        console.print(f"reconstructions: {out}")
    else:
        console.print('to draw reconstructions, install matplotlib: pip install "fastae\\[plot]"')


@command("fastae warmup")
def warmup() -> None:
    """Compile all kernels ahead of time.

    Compiles for every dtype that this CPU supports, for example in a Dockerfile. The cache is valid for one kind of
    CPU: this one or, for images that run elsewhere, the one that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name.
    """
    from fastae.engine.warmup import warm_up_all

    for dtype, seconds in warm_up_all():
        typer.echo(f"{dtype}: ready in {seconds:.1f} s")
