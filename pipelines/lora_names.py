"""What layers of a U-Net are called in the original layout of Stable Diffusion, which kohya's files for SDXL use; dots are underscores."""

from __future__ import annotations

import re
from collections.abc import Collection

PLACE = re.compile(r"(?P<side>down|up)_blocks_(?P<block>\d+)_(?P<kind>resnets|attentions|downsamplers|upsamplers)_(?P<at>\d+)_(?P<rest>.+)")
MIDDLE = {"resnets_0": "middle_block_0", "attentions_0": "middle_block_1", "resnets_1": "middle_block_2"}
OF_RESNETS = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1", "conv_shortcut": "skip_connection"}
ENDS = {
    "conv_in": "input_blocks_0_0", "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0", "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2",
}  # fmt: skip


def original(name: str, names: Collection[str]) -> str | None:
    """The other name of one of diffusers' `names`; None for what has none."""
    if name in ENDS:
        return ENDS[name]
    if name.startswith("mid_block_"):
        kind, number, rest = name.removeprefix("mid_block_").split("_", 2)
        place = MIDDLE.get(f"{kind}_{number}")
        return place and f"{place}_{OF_RESNETS.get(rest, rest)}"
    if (found := PLACE.fullmatch(name)) is None:
        return None
    stride = 1 + sum(f"down_blocks_0_resnets_{at}_conv1" in names for at in range(9))  # a block's layers and what resizes behind them
    block, layer, rest = int(found["block"]), int(found["at"]), OF_RESNETS.get(found["rest"], found["rest"])
    if found["kind"] == "downsamplers":
        return f"input_blocks_{(block + 1) * stride}_0_op"
    if found["kind"] == "upsamplers":
        attends = any(other.startswith(f"up_blocks_{block}_attentions_") for other in names)
        return f"output_blocks_{(block + 1) * stride - 1}_{2 if attends else 1}_conv"
    index = block * stride + layer + (found["side"] == "down")
    return f"{'input' if found['side'] == 'down' else 'output'}_blocks_{index}_{int(found['kind'] == 'attentions')}_{rest}"
