"""How one encoder definition is written down for a target."""

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphPolicy:
    """dtypes and forms of an emitted graph.

    ``compute``: what linears, attention and activations store; ``stream``: the residual stream; statistics, softmax,
    pooling and heads are always fp32. ``accumulate32`` writes the casts around GEMMs and attention that make TensorRT
    accumulate in fp32 (TENSORRT notes: Cast16(MatMul(Cast32 x, Cast32 W))). ``attention``: "mha" is ONNX Runtime's
    com.microsoft.MultiHeadAttention, "standard" ONNX Attention-23, "primitive" two matrix products. ``key_lengths``: its keys
    are masked by each row's length [B], not by a mask [B, L]. ``norm``: what a norm takes and gives (statistics are
    fp32 anyway). ``joined``: linears of one input are one product, their weights below each other. ``normed``: what a post-norm encoder's stream is stored as, whose every value is a norm's output; None: as
    ``stream``. ``wide``: what every island is computed in, None: what its unit says.
    """

    compute: ir.DataType
    stream: ir.DataType
    index: ir.DataType
    attention: Literal["mha", "standard", "primitive"]
    layout: Literal["padded", "packed"]
    accumulate32: bool = False
    decomposable: bool = False
    key_lengths: bool = False
    joined: bool = False
    norm: ir.DataType = ir.DataType.FLOAT
    normed: ir.DataType | None = None
    wide: ir.DataType | None = None


ONNXRUNTIME_CPU = GraphPolicy(
    compute=ir.DataType.FLOAT,
    stream=ir.DataType.FLOAT,
    index=ir.DataType.INT64,
    attention="mha",
    layout="padded",
)

ONNXRUNTIME_CUDA = GraphPolicy(
    compute=ir.DataType.FLOAT16,
    stream=ir.DataType.FLOAT,
    index=ir.DataType.INT32,
    attention="mha",
    layout="padded",
    key_lengths=True,
    wide=ir.DataType.FLOAT,
)
"""Masks [B, L] make ONNX Runtime's CUDA attention fall back to its unfused form; lengths of right-padded rows do not.
Islands are fp32: not every operation there takes bf16."""

TENSORRT = GraphPolicy(
    compute=ir.DataType.FLOAT16,
    stream=ir.DataType.FLOAT,
    index=ir.DataType.INT32,
    attention="standard",
    layout="padded",
    accumulate32=True,
    joined=True,
    normed=ir.DataType.FLOAT16,
)
