"""Convert DALL-E's published pickles to a posterior folder of GSS, once, without running them.

    python tools/convert_dalle.py --encoder encoder.pkl --decoder decoder.pkl --out runs/dalle

The files are those of OpenAI's ``dall_e`` package: whole pickled modules. ``torch.load`` reads them
with ``weights_only``, so that nothing in them is executed; classes of that package and the layers
of torch that it uses are replaced by empty shells, of which only names and tensors are taken. Any
other name in a file is refused. Fetch them yourself; nothing is fetched here. Licence of the
weights: that of github.com/openai/DALL-E (MIT, modified).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from unigs.files import new_folder
from unigs.records import UnigsError
from unigs.systems.gss.dalle import DECODER, load_dalle
from unigs.weights import check_file, check_names, in_words

SHELLS = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)
"""Names of classes in the pickles; none of their code is needed."""


class Shell:
    """What stands in for a module: its attributes, and no methods."""


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled module by dotted name; nothing of the file is executed.

    Raises:
        UnigsError: no such file, or one that holds something else.
    """
    check_file(path)
    with (
        torch.serialization.safe_globals([(Shell, name) for name in SHELLS]),
        in_words("a pickled module of the dall_e package", path),
    ):
        module = torch.load(path, map_location="cpu", weights_only=True)
    tensors = dict(list_tensors(module, ""))
    if not tensors:
        raise UnigsError(f"expected a module with tensors, got none, at {path}")
    return {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}


def list_tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters of a shell and of the shells inside, as ``Module.named_parameters`` names them."""
    state = vars(module) if isinstance(module, Shell) else {}
    for name, tensor in state.get("_parameters", {}).items():
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in state.get("_modules", {}).items():
        yield from list_tensors(child, f"{prefix}{name}.")


def rename_decoder(name: str) -> str:
    """``w`` and ``b`` of its convolutions as torch calls them."""
    stem, _, last = name.rpartition(".")
    return f"{stem}.{ {'w': 'weight', 'b': 'bias'}.get(last, last) }"


def rename_encoder(name: str) -> str:
    """As transformers' ``FlavaImageCodebook``: a group's blocks and a block's path lie deeper."""
    words = rename_decoder(name).split(".")
    deeper = {
        "res_path": ["res_path", "path"],
        **{f"group_{k}": [f"group_{k}", "group"] for k in range(1, 5)},
    }
    return ".".join(part for word in words for part in deeper.get(word, [word]))


def build_encoder(tensors: dict[str, Tensor], path: Path) -> FlavaImageCodebook:
    """The encoder of those weights, whose shapes say its sizes.

    Raises:
        UnigsError: weights of another network.
    """
    first, last = tensors.get("blocks.input.weight"), tensors.get("blocks.output.conv.weight")
    if first is None or last is None:
        raise UnigsError(f"expected the encoder of DALL-E, got another module, at {path}")
    blocks = sum(
        name.startswith("blocks.group_1.") and name.endswith("conv_1.bias") for name in tensors
    )
    config = FlavaImageCodebookConfig(
        hidden_size=len(first), vocab_size=len(last), num_blocks_per_group=blocks
    )
    encoder = FlavaImageCodebook(config)
    wanted = encoder.state_dict().keys()
    check_names(wanted - tensors.keys(), tensors.keys() - wanted, path)
    with in_words("weights of the encoder of DALL-E", path):
        encoder.load_state_dict(tensors)
    return encoder


def convert(encoder: Path, decoder: Path, out: Path) -> None:
    """Write a posterior folder, and read it back.

    Raises:
        UnigsError: a file that is not what it should be, or ``out`` is there already.
    """
    if out.exists():
        raise UnigsError(f"expected a new folder, got one that is there, at {out}")
    seen = {rename_encoder(name): tensor for name, tensor in read_pickle(encoder).items()}
    drawn = {rename_decoder(name): tensor for name, tensor in read_pickle(decoder).items()}
    with new_folder(out) as folder:
        build_encoder(seen, encoder).save_pretrained(folder)
        save_file(drawn, folder / DECODER)
        load_dalle(folder)
    print(f"wrote the posterior to {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("encoder", "decoder", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    convert(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
