"""`bnnpp inspect`."""

from __future__ import annotations

import json

from binarize_cli.cli import options as o
from binarize_cli.console import result, stdout
from binarize_cli.errors import printable


def inspect(file: o.PackedFile, as_json: o.Json = False) -> None:
    """Show what a packed file holds: every layer, binary or float and why, every byte. Builds no model.

    bnnpp inspect runs/digits_vit-bnn++-bw/model.safetensors --json | jq .bytes
    """
    from binarize_cli.packed.contents import contents
    from binarize_cli.packed.format import read

    account = contents(read(file))
    if as_json:
        result(json.dumps(account, allow_nan=False))
        return

    from binarize_cli.report.tables import bound_sentence, layers_table, macs_sentence, size_sentence

    model, size = account["model"], account["bytes"]
    lines = [
        f"{model['name']} of {model['source']}, {model['num_classes']} classes",
        f"method {account['method']}, task {account['task']}",
        size_sentence(size, account["float32_bytes"], account["ratio"], account["binary_weights"]),
        bound_sentence(account["smaller_than"], account["bound"], account["over_bound"]),
        macs_sentence(account["macs"]),
        _scored(account),
        ", ".join(f"{key} {value}" for key, value in account["provenance"].items() if value is not None),
    ]
    out = stdout()
    out.print(layers_table(account["layers"]))
    for line in lines:
        out.print(printable(line), markup=False)


def _scored(account: dict) -> str:
    scored = account["accuracy"]
    if scored is None:  # it was stopped between packing and scoring
        return "not scored yet"
    where = f"{scored['images']} images of {account['data']}"
    return f"top-1 {scored['top1']:.2f}, top-5 {scored['top5']:.2f} on {where}"
