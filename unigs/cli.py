"""``unigs``, ``python -m unigs`` and the ``lightning`` alias: one command, many verbs.

Training verbs (fit, validate, test) are LightningCLI's; every other verb is a plain
function whose signature is its command line. Nothing heavy is imported before a verb is chosen.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from unigs import __version__
from unigs.records import UnigsError, UnigsWarning, lacks_memory, show, suggest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

VERBS: dict[str, tuple[str, str]] = {
    "synthetic": ("unigs.synthetic:write_datasets", "draw three small data sets to try things on"),
    "synthetic clips": (
        "unigs.synthetic:write_clips",
        "draw clips of moving shapes",
    ),
    "shards": ("unigs.shards:write_shards", "turn data sets as distributed into shards"),
    "shards merge": ("unigs.shards:merge_shards", "finish shards that were written in parts"),
    "shards verify": ("unigs.shards:verify_shards", "check every byte of a folder of shards"),
    "data inspect": ("unigs.verbs.inspect:inspect_data", "contact sheet and counts of a data set"),
    "base": ("unigs.recipes.bases:make_base", "write a base folder of random weights"),
    "latents": ("unigs.verbs.latents:write_latents", "encode the pictures of a run ahead, once"),
    "export": ("unigs.verbs.export:export_pipeline", "turn a checkpoint into a pipeline folder"),
    "segment": ("unigs.verbs.tasks:segment_pictures", "every entity of pictures as masks"),
    "find": ("unigs.verbs.tasks:find_words", "what words name in pictures as masks"),
    "inpaint": ("unigs.verbs.tasks:inpaint_pictures", "fill a hole with what words name"),
    "paint": ("unigs.verbs.tasks:paint_labels", "draw a picture over a label map"),
    "sheet": (
        "unigs.verbs.sheet:render_sheet",
        "every task on a few pictures, as one picture",
    ),
    "sample": (
        "unigs.verbs.sample:sample_pictures",
        "inpaint, synthesise, find or segment",
    ),
    "evaluate": ("unigs.verbs.evaluate:evaluate_models", "the paper's tables for any models"),
    "evaluate clips": ("unigs.verbs.clips:evaluate_on_clips", "J&F of models that follow a clip"),
    "demo": ("unigs.demo.serve:serve_page", "the tasks as a page in a browser"),
    "doctor": ("unigs.verbs.doctor:report_health", "look for common trouble and say what to do"),
}
TRAINING = {
    "fit": "train a model: unigs fit --config configs/joint.yaml",
    "validate": "score a checkpoint on the validation set",
    "test": "evaluate a checkpoint by the fixed protocol",
}

TRAINING_HELP = """usage: unigs {verb} --config FILE [--config OVERLAY] [--DOTTED.KEY VALUE ...]

{line}

  --config FILE          what to do, in YAML; a later file changes an earlier one
  --trainer.max_steps N  any key of a config by its dotted name; it changes the files
  --ckpt_path last       the newest whole checkpoint of the run, or a file
  --print_config         print the whole config with every default

Every option: unigs {verb} --config FILE --help (imports torch and takes a while).
Those of one class: --model.help unigs.systems.UniGS, --data.help unigs.data.UniGSData.
"""

INSTEAD = {"predict": "segment"}
"""Verbs that people know from elsewhere."""

INTERRUPTED = 130
"""Exit code after Ctrl+C, as shells have it."""


def show_help() -> None:
    """Print every verb with its line."""
    print(f"unigs {__version__}: diffusion models that generate images and segment them\n")
    print("usage: unigs VERB [options]      unigs VERB --help says more\n")
    for name, line in TRAINING.items():
        print(f"  {name:14} {line}")
    print()
    for name, (_, line) in VERBS.items():
        print(f"  {name:14} {line}")


def find_verb(words: Sequence[str]) -> str | None:
    """The longest verb that the words begin with."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and name in VERBS:
            return name
    return None


def refuse_verb(word: str) -> str:
    """Words for a verb that there is none of, with the nearest that there is."""
    known = [*TRAINING, *VERBS]
    hint = suggest(INSTEAD.get(word, word), known)
    return f"expected a verb of {', '.join(known)}, got {show(word)!r}{hint}"


def run_verb(verb: str, words: Sequence[str]) -> None:
    """Parse ``words`` by the signature of the verb's function and call it."""
    function, parser = make_parser(verb)
    options = parser.instantiate(parser.parse_args(list(words)))
    if "config" not in inspect.signature(function).parameters:
        options.pop("config", None)  # a file of options, which are set by now
    function(**options)


def make_parser(verb: str) -> tuple[Callable, ArgumentParser]:
    """The verb's function, and the parser of its signature."""
    from jsonargparse import auto_parser

    from unigs.verbs.parser import EXAMPLES, ExampleFormatter, VerbParser

    module, name = VERBS[verb][0].split(":")
    function = getattr(import_module(module), name)
    sys.argv[0] = f"unigs {verb}"
    return function, auto_parser(
        function,
        as_positional=False,
        epilog=f"{EXAMPLES}\n{lines}" if (lines := read_examples(function)) else None,
        formatter_class=ExampleFormatter,
        parser_class=VerbParser,
    )


def read_examples(function: Callable) -> str:
    """The command lines under ``Example:`` at the end of a docstring; they end the verb's help."""
    return (inspect.getdoc(function) or "").partition("\nExample:\n")[2]


def run_training(words: Sequence[str]) -> int:
    """LightningCLI with any model and data class; returns the exit code.

    Help alone is answered here, at once; with a config it is LightningCLI's, of every option.
    """
    if words[1:] in (["--help"], ["-h"]):
        print(TRAINING_HELP.format(verb=words[0], line=TRAINING[words[0]]))
        return 0
    from unigs.verbs.fit import run_lightning

    return run_lightning(list(words))


@contextmanager
def plain_words() -> Iterator[None]:
    """Print what any locale can show, and our own warnings as one line each."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    format_warning = warnings.formatwarning

    def format_ours(message, category, *place, **more) -> str:
        if issubclass(category, UnigsWarning):
            return f"unigs: {show(message)}\n"
        return format_warning(message, category, *place, **more)

    warnings.formatwarning = format_ours
    try:
        yield
    finally:
        warnings.formatwarning = format_warning


def explain(error: BaseException) -> str:
    """What the end of a verb means for the user."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted; finished files are kept"
    if lacks_memory(error):
        return "expected enough memory, got no more of it; try smaller pictures, batches or files"
    if isinstance(error, RecursionError):
        return "expected a sensible input, got one nested too deeply"
    if isinstance(error, OSError) and not isinstance(error, UnigsError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        where = f", at {' -> '.join(names)}" if names else ""
        return f"expected to read and write files, got: {error.strerror or error}{where}"
    return str(error)


def main(words: Sequence[str] | None = None) -> int:
    """Entry of all three commands.

    Returns:
        0; 1 for bad input, a full disk and the like, told in words; 2 for a bad command line; 130
        if it was interrupted; 143 if a training run was preempted and saved.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        show_help()
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    verb = find_verb(words)
    with plain_words():
        if words[0] not in TRAINING and verb is None:
            print(f"unigs: {refuse_verb(words[0])}", file=sys.stderr)
            return 2
        try:
            if verb is None:
                return run_training(words)
            run_verb(verb, words[len(verb.split()) :])
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (UnigsError, OSError, MemoryError, RuntimeError, KeyboardInterrupt) as error:
            ours = not isinstance(error, RuntimeError) or isinstance(error, RecursionError)
            if os.environ.get("UNIGS_TRACEBACK") or not (ours or lacks_memory(error)):
                raise
            lines = [show(line) for line in explain(error).split("\n")]
            print("unigs: " + "\n".join(lines), file=sys.stderr)
            return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
