"""`plainres demo`: plain against residual in a few minutes, without a network."""

from plainres.cli_show import GENERATED, RunBar
from plainres.data.dataset import dataset
from plainres.run import train


def run(out: str, epochs: float) -> None:
    """Train plain20 and resnet20 alike on generated data; print both errors and where the curves are."""
    data, results = dataset("generated"), []
    for network in ("plain20", "resnet20"):
        with RunBar(quiet=False, to_stderr=False) as bar:
            results.append(train(network, "quick", data, epochs=epochs, out=out, reporter=bar))
            if results[-1].already_finished:
                print(f"already finished: {results[-1].run_dir}")
    print(f"\n{'network':<12}{'training error':>16}{'test error':>12}   run directory")
    for result in results:
        facts = result.facts
        print(f"{facts['network']:<12}{facts['train_error']:>16.2%}{facts['error']:>12.2%}   {result.run_dir}")
    print(f"\n{GENERATED}\nThe curves: tensorboard --logdir {out}")
