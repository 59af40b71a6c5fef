"""The command line: ``python -m optax_decoupled plan`` and ``history``."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

import optax

import optax_decoupled as od
from optax_decoupled._watch import checkpoints

_PLAN = "the effect of a decay over a run, beside the values of published rules"
_HISTORY = "what happened to each weight of a run, from an Orbax checkpoint"
_EXAMPLES = {
    "plan": (
        "example:\n  python -m optax_decoupled plan 100000 --learning-rate 3e-4 \\\n"
        "      --pytorch 0.1 --warmup 2000 --cosine"
    ),
    "history": (
        "example:\n  python -m optax_decoupled history runs/7 --learning-rate 3e-4 \\\n"
        "      --weight-decay 1e-5 --decay-mask --plot history.png"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 for an error of its input, 2 for its usage."""
    options = _parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of files that may be missing
    try:
        options.run(options)
    except BrokenPipeError:  # the reader has seen enough
        sys.stdout = None
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m optax_decoupled", description="Decoupled weight decay for Optax."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, description, run in (("plan", _PLAN, _plan), ("history", _HISTORY, _history)):
        command = commands.add_parser(
            name,
            help=description,
            description=description[0].upper() + description[1:] + ".",
            epilog=_EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        if name == "plan":
            command.add_argument("steps", type=_whole_number, help="updates of the run")
        else:
            command.add_argument("checkpoint", help="directory that Orbax saved")
        _add_hyperparameters(command)
        if name == "plan":
            command.add_argument("--momentum", type=float, help="of SGD, instead of AdamW")
            command.add_argument("--steps-per-epoch", type=float, help="adds the rule of an epoch")
            command.add_argument(
                "--tokens-per-parameter", type=float, help="adds a rule for language models"
            )
        else:
            command.add_argument(
                "--decay-mask", action="store_true", help="the run was trained with od.decay_mask"
            )
            command.add_argument("--steps", type=int, help="updates of the whole run, for --cosine")
            command.add_argument("--plot", metavar="FILE", help="draw it to this file, too")
    return parser


def _add_hyperparameters(command: argparse.ArgumentParser) -> None:
    decay = command.add_mutually_exclusive_group()
    decay.add_argument("--weight-decay", type=float, help="the fraction removed per full step")
    decay.add_argument(
        "--pytorch",
        type=float,
        metavar="DECAY",
        help="the decay of PyTorch's or Optax's AdamW, which multiplies it by the rate",
    )
    command.add_argument("--learning-rate", type=float, help="the peak learning rate")
    command.add_argument("--b1", type=float, default=0.9, help="of AdamW (default: 0.9)")
    command.add_argument(
        "--warmup", type=int, default=0, metavar="STEPS", help="linear, from 0 (default: none)"
    )
    command.add_argument("--cosine", action="store_true", help="anneal to 0 after the warmup")


def _weight_decay(options: argparse.Namespace) -> float | None:
    if options.pytorch is None:
        return options.weight_decay
    if options.learning_rate is None:
        raise ValueError(
            "--pytorch needs --learning-rate: PyTorch's decay is multiplied by the rate."
        )
    momentum = getattr(options, "momentum", None) or 0.0
    steady = 1 / (1 - momentum) if 0 <= momentum < 1 else 1.0  # the plan refuses others
    return steady * od.weight_decay_from_pytorch(options.pytorch, options.learning_rate)


def _schedule(options: argparse.Namespace, steps: int) -> optax.Schedule | None:
    """Warmup and cosine as a multiplier of at most 1."""
    warmup = options.warmup
    if not 0 <= warmup <= max(steps, 0):  # too few steps are refused by the plan
        raise ValueError(f"--warmup {warmup} must be between 0 and the run's {steps} updates.")
    if not (warmup or options.cosine):
        return None
    rest = max(steps - warmup, 1)
    after = optax.cosine_decay_schedule(1.0, rest) if options.cosine else optax.constant_schedule(1)
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup])


def _whole_number(text: str) -> int:
    """An int, also as 1e5."""
    number = float(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)


_whole_number.__name__ = "number of updates"  # argparse prints it in its error


def _plan(options: argparse.Namespace) -> None:
    print(
        od.plan_weight_decay(
            options.steps,
            weight_decay=_weight_decay(options),
            schedule=_schedule(options, options.steps),
            learning_rate=options.learning_rate,
            b1=options.b1,
            momentum=options.momentum,
            steps_per_epoch=options.steps_per_epoch,
            tokens_per_parameter=options.tokens_per_parameter,
        )
    )


def _history(options: argparse.Namespace) -> None:
    if options.cosine and options.steps is None:
        raise ValueError("--cosine needs --steps, the updates of the whole run.")
    history = od.recorded_weight_dynamics(
        checkpoints.read(options.checkpoint),
        weight_decay=_weight_decay(options),
        schedule=_schedule(options, options.warmup if options.steps is None else options.steps),
        learning_rate=options.learning_rate,
        mask=od.decay_mask if options.decay_mask else None,
        b1=options.b1,
    )
    print(history)
    if options.plot:
        history.plot()[0].figure.savefig(options.plot, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
