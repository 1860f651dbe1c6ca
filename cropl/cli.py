"""The command line: ``cropl VERB ...``.

``fit``, ``validate``, ``test`` and ``predict`` are LightningCLI's, with recipes by name (``-c testbed/localizer``).
Every other verb is a module of :mod:`cropl.commands` with ``run(args) -> int``, imported only when it is called, so
that the light ones answer without loading torch.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cropl import __version__, recipe
from cropl.commands import training_errors
from cropl.commands.verbs import COMMANDS, TRAINING_VERBS, TRAINS
from cropl.errors import USAGE, UsageError, by_interrupt, guarded, nearest

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

_NOT_FOR_USERS = (
    "LightningCLI's args parameter",  # we pass them on purpose
    ".*skip_none parameter was deprecated",  # Lightning's own call
    ".*isinstance\\(treespec, LeafSpec\\)",
    ".*module\\(s\\) in eval mode at the start",  # frozen towers and loaded models are meant to be
    ".*does not have many workers",  # cached scenes load faster than workers would pass them on
    ".*exists and is not empty",  # runs are continued in place
    ".*Total length of .* across ranks is zero",  # a training without validation
    ".*recommended to use .self.log\\(.*sync_dist=True",  # what is logged has been reduced over all processes
)


def main(args: Sequence[str] | None = None) -> int:
    """Run ``cropl`` with ``args`` (default: the process's); returns the exit code (0 done, 1 failed run, 2 usage)."""
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else USAGE
    if args[0] in ("-V", "--version"):
        print(f"cropl {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    return guarded(lambda: _dispatch(verb, rest))


def _dispatch(verb: str, rest: list[str]) -> int:
    if verb in TRAINING_VERBS:
        training_errors.check_arguments(verb, rest)
        return _train([verb, *recipe.resolve_config_flags(rest)])
    if verb in COMMANDS:
        command = importlib.import_module(f"cropl.commands.{verb}")
        return int((command.run(rest, training_cli) if verb in TRAINS else command.run(rest)) or 0)
    raise UsageError(f"unknown command {verb!r}{nearest(verb, [*TRAINING_VERBS, *COMMANDS], 'commands')}")


def _train(args: list[str]) -> int:
    from lightning.pytorch import Trainer
    from omegaconf.errors import OmegaConfBaseException

    try:
        training_cli(args)
    except OmegaConfBaseException as error:
        raise UsageError(f"the recipe does not resolve: {error}") from None
    except ValueError as error:
        if (said := training_errors.told(str(error), Trainer)) == str(error):
            raise
        raise UsageError(said) from error
    except SystemExit as end:
        if by_interrupt(end):
            raise KeyboardInterrupt from None
        return int(end.code or 0)  # jsonargparse has already printed what is wrong
    return 0


def training_cli(args: Sequence[str], run: bool = True, instantiate: bool = True) -> LightningCLI:
    """LightningCLI over ``args``: the verb first, recipes as paths.

    Args:
        args: the arguments; without a verb where nothing is run.
        run: whether the verb is run; otherwise trainer, model and data are only made.
        instantiate: whether even that is done; otherwise the arguments are only parsed and checked.

    Raises:
        UsageError: Lightning cannot do what is asked on this machine (an accelerator that is not there).
    """
    import lightning.pytorch as pl
    from jsonargparse import set_parsing_settings
    from lightning.pytorch.callbacks import Checkpoint as AnyCheckpoint
    from lightning.pytorch.callbacks import ProgressBar
    from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    import cropl.parallel  # noqa: F401  it makes the strategy fsdp2 known
    from cropl.callbacks import complete
    from cropl.callbacks.checkpoint import Checkpoint

    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    for message in _NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    if not run:  # nothing is drawn
        logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)

    class Command(LightningCLI):
        def _parse_ckpt_path(self) -> None:
            """A checkpoint's hyperparameters must not overrule the recipe and the command line."""

        def instantiate_classes(self) -> None:
            if instantiate:
                super().instantiate_classes()

        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.set_defaults({"seed_everything": 0})
            parser.add_argument(
                "--allow_change", type=bool, default=False, help="continue a run with other settings than it had"
            )

        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
            """A recipe that names no checkpoint callback gets ours."""
            given = self._get(self.config_init, "trainer", default={})
            callbacks = given.get("callbacks") or []
            callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
            if given.get("enable_progress_bar") is False:  # Lightning would refuse the recipe's
                callbacks = kwargs["callbacks"] = [each for each in callbacks if not isinstance(each, ProgressBar)]
            if given.get("enable_checkpointing") is not False and not any(
                isinstance(each, AnyCheckpoint) for each in callbacks
            ):
                kwargs["callbacks"] = [*callbacks, Checkpoint()]
            return super().instantiate_trainer(**kwargs)

        def before_fit(self) -> None:
            config = self.config[str(self.subcommand)].as_dict()
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoint):
                    callback.prepare(self.trainer, config)

        def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
            kwargs = super()._prepare_subcommand_kwargs(subcommand)
            own = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, Checkpoint)]
            got_further = any(complete.complete(each.folder(self.trainer)) for each in own)
            if subcommand != "fit" and got_further and kwargs.get("ckpt_path") is None:
                told = f"cropl: {subcommand}: the model as the recipe loads it; as it was trained: --ckpt_path last"
                rank_zero_only(print)(told, file=sys.stderr)
            if subcommand == "fit" and int(os.environ.get("SLURM_RESTART_COUNT") or 0):  # requeued: the same command
                kwargs["ckpt_path"] = (None if got_further else kwargs.get("ckpt_path")) or "last"
            return kwargs

    class SaveConfig(SaveConfigCallback):
        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            """Nothing yet: a run that is refused, or trains nothing, leaves the recipe that is there."""

        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            """The resolved recipe goes beside the logs and checkpoints, never into the working directory."""
            if trainer.logger is not None:
                super().setup(trainer, pl_module, "fit")

    parsing = {
        "parser_mode": "omegaconf+",
        "error_handler": partial(training_errors.one_line_error, trainer=pl.Trainer),
        "allow_abbrev": False,  # a slip of the pen would set something else
    }
    try:
        return Command(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**parsing, **(dict.fromkeys(TRAINING_VERBS, parsing) if run else {})},
            args=list(args),
            run=run,
        )
    except MisconfigurationException as error:
        raise UsageError(training_errors.of_lightning(str(error), args[0] if run else "fit")) from error


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()


def _help() -> str:
    verbs = {**TRAINING_VERBS, **COMMANDS}
    width = max(map(len, verbs))
    lines = [f"  {verb:<{width}}  {what}" for verb, what in verbs.items()]
    return "\n".join(
        [
            "cropl: contextual-region visual token pruning for vision-language models",
            "",
            "usage: cropl VERB [-c RECIPE] [--key value ...]",
            "",
            *lines,
            "",
            "`cropl VERB --help` says more; `cropl ls` lists the recipes.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
