"""The console script ``fastode``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fastode._version import __version__

if TYPE_CHECKING:
    from fastode.models import ImageModel
    from fastode.train.config import TrainConfig

NEWEST = "newest"
_DATA_SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "folder")
_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="fastode")
def main() -> None:
    """Kernel-accelerated ODE solves for PyTorch."""


@main.command()
def info() -> None:
    """Print versions, the backends that can run here (and why others cannot), processor and GPU."""
    from fastode.info import report

    click.echo(report())


@main.command(
    add_help_option=False,  # the options are those of bench/cli.py, and so is the help
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Compare fastode with other ODE libraries; needs a checkout of the repository."""
    from importlib import import_module

    root = _checkout()
    if root is None:
        raise click.ClickException(
            "the benchmarks are not part of the installed package: run this inside a checkout of fastode's repository, "
            "after  pip install -e '.[bench]'"
        )
    sys.path.insert(0, str(root))
    import_module("bench.cli").main(list(arguments), prog_name="fastode bench")


def _checkout() -> Path | None:
    """The folder of the checkout that this fastode comes from, or that the command runs in."""
    for root in (Path(__file__).parents[1], Path.cwd(), *Path.cwd().parents):
        if (root / "bench" / "cases" / "case.py").is_file() and (root / "fastode" / "cli.py").is_file():
            return root
    return None


def _require(*names: str) -> None:
    from fastode.train.extra import require_train

    try:
        require_train(*names)
    except ImportError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--model", type=click.Choice(["autoencode", "ae", "vae"]), default="autoencode", help="What to train.")
@click.option("--data", type=click.Choice(_DATA_SETS), default="digits", help="Data set; digits needs no files.")
@click.option("--data-dir", type=click.Path(), help="Where its files are: folder or archive.")
@click.option("--limit", type=int, metavar="N", help="Use at most N images in all, held-out ones included.")
@click.option("--image-size", type=int, metavar="N", help="--data folder: resize to N x N pixels.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="--data folder: gray or RGB [default: as they are].")
@click.option("--code-size", type=int, default=16, help="Numbers per image in the code.")
@click.option("--width", type=int, default=16, help="Channels of the first convolution.")
@click.option("--state-dim", type=int, help="Length of the ODE state  [default: the code size].")
@click.option("--hidden", type=int, metavar="N", help="Field with N hidden units instead of the affine one.")
@click.option("--activation", default="tanh", help="Of the field.")
@click.option("--horizon", type=float, default=4.0, help="End time T of the ODE.")
@click.option(
    "--start",
    type=click.Choice(["learned", "encoding"]),
    default="learned",
    help="Initial state: one for all images, or a linear map of the code.",
)
@click.option("--method", default="dopri5", help="Runge-Kutta method, see fastode.TABLEAUS.")
@click.option("--rtol", type=float, default=1e-2, help="Relative tolerance of the solve.")
@click.option("--atol", type=float, default=1e-3, help="Absolute tolerance of the solve.")
@click.option("--loss", type=click.Choice(["bce", "mse"]), default="bce", help="Cross entropy or squared error.")
@click.option("--beta", type=float, default=1.0, help="Weight of a VAE's divergence.")
@click.option("--epochs", type=int, help="[default: 60 for the digits, 30 for folder, 20 for the others]")
@click.option("--batch-size", type=int, default=64, help="Images per step and process.")
@click.option("--lr", type=float, default=6e-3, help="Highest learning rate of the warm-up and cosine schedule.")
@click.option("--weight-decay", type=float, default=1e-4, help="Of AdamW.")
@click.option("--early-stop", type=int, metavar="PATIENCE", help="Stop after PATIENCE epochs without a better loss.")
@click.option("--seed", type=int, default=0, help="Of the split, the initialisation and the order of the batches.")
@click.option("--precision", type=click.Choice(["32", "bf16-mixed", "16-mixed"]), default="32", help="Of the networks.")
@click.option("--accelerator", default="auto", help="Lightning's: cpu, gpu, ...")
@click.option("--devices", default="auto", help="How many, or which: 2, 0,1, auto.")
@click.option("--strategy", default="auto", help="Lightning's: ddp, ...")
@click.option("--out", type=click.Path(), help="Folder of the run  [default: runs/<time>-<data>-<model>].")
@click.option(
    "--resume",
    is_flag=False,
    flag_value=NEWEST,
    metavar="[RUN]",
    help="Go on after the last completed epoch of the run in this folder, in --out, or the newest below runs/.",
)
@click.option("--progress/--no-progress", default=None, help="Progress bar  [default: in a terminal].")
@click.pass_context
def train(context: click.Context, resume: str | None, **options: Any) -> None:
    """Train an autoencoder on images and report on it.

    The run's folder gets checkpoints, the trained model (model.pt), losses as CSV and for TensorBoard, pictures and
    report.json. After an interruption --resume loses no completed epoch; settings are those of the run to resume.

    \b
    Examples:
      fastode train
      fastode train --model vae --data mnist --data-dir ~/mnist --epochs 30
      fastode train --data folder --data-dir photos --image-size 64 --code-size 64
      fastode train --accelerator cpu --devices 2 --strategy ddp
      fastode train --resume runs/20250101-120000-digits-autoencode
    """  # noqa: D301
    _require()
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from fastode.status import SolveError
    from fastode.train import report
    from fastode.train.data import DataError
    from fastode.train.run import train as run

    try:
        config = _settings(context, resume, options)
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    try:
        result = run(config, resume=resume is not None)
    except (DataError, FileNotFoundError, FileExistsError, ValueError, MisconfigurationException, SolveError) as error:
        raise click.ClickException(str(error)) from error
    except (OSError, MemoryError, RuntimeError) as error:
        raise click.ClickException(_system_error(error, config)) from error
    except (KeyboardInterrupt, SystemExit) as error:
        click.echo("\ninterrupted; go on after the last completed epoch with --resume", err=True)
        raise SystemExit(130) from error
    if result:
        click.echo(f"\n{report.table(result)}\n\nfiles:")
        for file in result["files"]:
            click.echo(f"  {file}")


def _system_error(error: Exception, config: TrainConfig) -> str:
    """In one line what disk or memory refused; other errors of a run are raised as they are."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return f"not enough memory: {text}; try a smaller --batch-size, --width or --hidden"
    if isinstance(error, OSError):
        where = error.filename or config.out or "the folder of the run"
        return f"cannot read or write {where}: {error.strerror or text}"
    if "PytorchStreamWriter" in text or "unexpected pos" in text or "inline_container" in text:
        return f"cannot write a checkpoint into {config.out or 'the folder of the run'}: is the disk full? ({text})"
    raise error


def _settings(context: click.Context, resume: str | None, options: dict[str, Any]) -> TrainConfig:
    """The settings of a new run, or those of the run to resume with what was given on the command line."""
    from fastode.train.config import TrainConfig
    from fastode.train.run import RUNS, newest_run

    if options["channels"] is not None:
        options["channels"] = int(options["channels"])
    if options["progress"] is None:
        options["progress"] = sys.stderr.isatty()
    if resume is None:
        return TrainConfig(**options)
    given = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    }
    folder = Path(resume) if resume != NEWEST else Path(given.get("out") or newest_run(Path(RUNS)))
    return TrainConfig.load(folder).changed(**{**given, "out": str(folder), "progress": options["progress"]})


def _load(path: str, paths: tuple[str, ...]) -> tuple[ImageModel, list[Path], Any]:
    """(model, image files, their pixels) for the commands that apply a model."""
    _require("PIL")
    from fastode.models import load_model
    from fastode.train import apply
    from fastode.train.data import DataError

    try:
        model = load_model(path)
        files = apply.collect([Path(p) for p in paths])
        pixels = apply.read_all(model, files)
    except (DataError, FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(files)} images, {apply.conversion(model)}")
    return model, files, pixels


@main.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--out", type=click.Path(), default="codes.npz", help="Where to write: .npz or .csv.")
def encode(checkpoint: str, images: tuple[str, ...], out: str) -> None:
    """Write the codes of IMAGES (files or folders) under the model in CHECKPOINT.

    CHECKPOINT is model.pt, a .ckpt file, or the folder of a run.
    """
    if Path(out).suffix not in (".npz", ".csv"):
        raise click.ClickException(f"--out must end in .npz or .csv, got {out}")
    model, files, pixels = _load(checkpoint, images)
    from fastode.train import apply

    codes = apply.encode(model, pixels)
    apply.save_codes(Path(out), codes, files)
    click.echo(f"codes {codes.shape[0]} x {codes.shape[1]} in {out}")


@main.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--out", type=click.Path(), default="reconstructions", help="Folder to write PNG files into.")
def reconstruct(checkpoint: str, images: tuple[str, ...], out: str) -> None:
    """Write what the model in CHECKPOINT makes of IMAGES (files or folders), one PNG per image.

    CHECKPOINT is model.pt, a .ckpt file, or the folder of a run.
    """
    model, files, pixels = _load(checkpoint, images)
    from fastode.train import apply

    written = apply.save_images(Path(out), apply.reconstruct(model, pixels), files)
    click.echo(f"{len(written)} images in {out}")
