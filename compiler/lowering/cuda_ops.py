"""The encoder as a launch plan: `Ops` whose values are lazy, so that sums, norms, gathers and rotations meet in one kernel.

Packed tokens, fp16 products with fp32 accumulation; sums and statistics in fp32 registers. The residual stream is
stored in ``stream``: fp16 where every stored value is a norm's output (post-norm), otherwise fp32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
import numpy as np

from bei.adapters.config import Act, DynamicNtk, EncoderConfig, Moe, NormKind, RelativeBuckets, Rope
from bei.adapters.head import Head, Pooling
from bei.compiler import positions
from bei.compiler.encoder import run
from bei.compiler.lowering.cuda_program import Finished, Program
from bei.compiler.ops import Attention, Index
from bei.compiler.precision.folding import Folded
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.weights import Weight
from bei.cuda_plan import DType, Epilogue, Operand, Product
from bei.errors import LoweringError

Stream = Literal["f16", "f32"]
Gelu = Literal["erf", "tanh"]
EXACT_EPILOGUES: dict[Act, Epilogue] = {"relu": "relu", "gelu_tanh": "gelu_tanh"}
"""Activations that cuBLASLt's epilogues compute as the model defines them."""


@dataclass(slots=True)
class Stored:
    """A value in memory, in one precision or two."""

    parts: dict[DType, Operand]


@dataclass(slots=True)
class Embedding:
    """Table rows not yet gathered: canonical names by index; ``row``: the type table adds its first row to all."""

    tables: dict[Index, str]
    dim: int
    scale: float = 1.0
    row: bool = False
    stored: Stored | None = None


@dataclass(slots=True)
class Sum:
    """a + b, not yet added."""

    a: Operand
    b: Operand
    stored: Stored | None = None


@dataclass(frozen=True, slots=True)
class HeadNorm:
    name: str
    kind: NormKind
    eps: float


@dataclass(frozen=True, slots=True)
class Heads:
    """A matrix seen as heads, its norm and rotation still to come."""

    x: Operand
    head_dim: int
    norm: HeadNorm | None = None
    rope: Rope | None = None


@dataclass(slots=True)
class Pooled:
    """A pooling not yet made, so that several can share a buffer."""

    x: Operand
    pooling: Pooling
    include_prompt: bool
    stored: Stored | None = None


Value = Stored | Embedding | Sum | Heads | Pooled


@dataclass(slots=True)
class CudaOps:
    """`Ops` that writes a `Program`."""

    program: Program
    stream: Stream
    gelu: Gelu = "erf"
    _frequencies: dict[Rope, Operand] = field(default_factory=dict)

    # --- memory

    def store(self, x: Value, want: DType) -> Operand:
        """The value in ``want``'s precision, computed or converted where it is not there yet."""
        parts = self._parts(x)
        if want not in parts:
            source = next(iter(parts.values()))
            self._add_norm(source, None, None, parts)
        return parts[want]

    def _parts(self, x: Value) -> dict[DType, Operand]:
        if isinstance(x, Heads):
            raise LoweringError("cuda: heads are read by attention only. Report this as a bug.")
        if isinstance(x, Stored):
            return x.parts
        if x.stored is None:
            x.stored = Stored({})
            if isinstance(x, Embedding):
                self._gather(x, None, x.stored.parts)
            elif isinstance(x, Sum):
                self._add_norm(x.a, x.b, None, x.stored.parts)
            else:
                out = self.program.buffer("rows", x.x.width, "f32")
                self._pool(x, out)
                x.stored.parts["f32"] = out
        return x.stored.parts

    def _any(self, x: Value, want: DType) -> Operand:
        """The value in ``want``'s precision if it is there, else in whatever it is."""
        parts = self._parts(x)
        return parts.get(want) or next(iter(parts.values()))

    def _outputs(self, like: Operand, parts: dict[DType, Operand], summed: bool) -> dict[str, Operand | None]:
        """total, half, full: candidates, dropped later where nothing reads them."""
        rows, width = like.rows, like.width
        keep: DType = self.stream if rows == "tokens" else "f32"
        half = self.program.buffer(rows, width, "f16")
        full = self.program.buffer(rows, width, "f32")
        for operand in (half, full):
            parts.setdefault(operand.dtype, operand)
        return {
            "total": self.program.buffer(rows, width, keep) if summed else None,
            "half": half,
            "full": full,
        }

    def _norm_operands(self, norm: HeadNorm | None) -> dict[str, Operand | None]:
        if norm is None:
            return {"weight": None, "bias": None}
        return {
            "weight": self.program.vector(f"{norm.name}.weight"),
            "bias": self.program.vector(f"{norm.name}.bias"),
        }

    def _add_norm(
        self,
        x: Operand,
        a: Operand | None,
        norm: HeadNorm | None,
        parts: dict[DType, Operand],
        factor: float = 1.0,
    ) -> Operand | None:
        """Emit (x + a)·factor and its norm; returns where the sum would be, for the stream to go on from."""
        out = self._outputs(x, parts, summed=norm is not None and a is not None)
        attrs = {
            "kind": norm.kind if norm else "none",
            "eps": norm.eps if norm else 0.0,
            "factor": factor,
            "rows": x.rows,
        }
        operands = {"x": x, "a": a, **self._norm_operands(norm), **out}
        self.program.launch("add_norm", attrs, operands, tuple(out))
        return out["total"]

    # --- embeddings

    def embed(self, name: str, index: Index, rows: int, dim: int) -> Value:
        return Embedding({index: name}, dim)

    def row(self, name: str, dim: int) -> Value:
        return Embedding({"types": name}, dim, row=True)

    def _gather(self, x: Embedding, norm: HeadNorm | None, parts: dict[DType, Operand]) -> Operand | None:
        program = self.program

        def table(index: Index) -> Operand | None:
            return program.matrix((f"{x.tables[index]}.weight",), x.dim, "f16") if index in x.tables else None

        like = Operand(place="arena", name="", rows="tokens", dtype="f16", width=x.dim, stride=x.dim)
        out = self._outputs(like, parts, summed=norm is not None)
        operands = {
            "ids": program.input("ids"),
            "types": program.input("types") if "types" in x.tables and not x.row else None,
            "positions": program.input("positions") if "positions" in x.tables else None,
            "token_table": table("tokens"),
            "type_table": table("types"),
            "position_table": table("positions"),
            **self._norm_operands(norm),
            **out,
        }
        attrs = {
            "scale": x.scale,
            "kind": norm.kind if norm else "none",
            "eps": norm.eps if norm else 0.0,
        }
        program.launch("embed", attrs, operands, tuple(out))
        return out["total"]

    # --- token-wise

    def add(self, a: Value, b: Value) -> Value:
        if isinstance(a, Embedding) and isinstance(b, Embedding) and a.stored is None and b.stored is None:
            return replace(a, tables=a.tables | b.tables, row=a.row or b.row)
        return Sum(self._any(a, self.stream), self._any(b, self.stream))

    def scale(self, x: Value, factor: float) -> Value:
        if isinstance(x, Embedding) and x.stored is None and set(x.tables) == {"tokens"}:
            return replace(x, scale=x.scale * factor)
        result = Stored({})
        self._add_norm(self._any(x, "f32"), None, None, result.parts, factor)
        return result

    def norm(self, x: Value, name: str, kind: NormKind, eps: float, dim: int) -> Value:
        norm = HeadNorm(name, kind, eps)
        if isinstance(x, Heads):
            return replace(x, norm=norm)
        result = Stored({})
        if isinstance(x, Embedding | Sum) and x.stored is None:
            total = (
                self._gather(x, norm, result.parts)
                if isinstance(x, Embedding)
                else self._add_norm(x.a, x.b, norm, result.parts)
            )
            assert total is not None
            x.stored = Stored({total.dtype: total})
        else:
            self._add_norm(self._any(x, "f32"), None, norm, result.parts)
        return result

    def linear(self, x: Value, names: Sequence[str], outs: Sequence[int], dim: int) -> list[Value]:
        out = self._product(self.store(x, "f16"), names, outs, dim, "f16")
        columns = np.cumsum([0, *outs[:-1]])
        views = [
            msgspec.structs.replace(out, width=n, column=int(c)) for n, c in zip(outs, columns, strict=True)
        ]
        return [Stored({"f16": view}) for view in views]

    def _product(
        self, x: Operand, names: Sequence[str], outs: Sequence[int], dim: int, dtype: DType
    ) -> Operand:
        program = self.program
        weight = program.matrix([f"{name}.weight" for name in names], dim, dtype)
        out = program.buffer(x.rows, sum(outs), dtype)
        program.steps.append(Product(x=x, weight=weight, bias=program.biases(names, outs, dtype), out=out))
        return out

    def activation(self, x: Value, act: Act, site: str | None = None) -> Value:
        if act == "identity":
            return x
        source = self._any(x, "f32" if site is None else "f16")
        last = self.program.steps[-1]
        form: Act = "gelu_tanh" if act == "gelu" and self.gelu == "tanh" else act
        if site and form in EXACT_EPILOGUES and isinstance(last, Product) and last.out == source:
            self.program.steps[-1] = msgspec.structs.replace(last, epilogue=EXACT_EPILOGUES[form])
            return Stored({source.dtype: source})
        return self._activate(source, None, act)

    def gate(self, gate: Value, up: Value, act: Act, site: str) -> Value:
        return self._activate(self._any(gate, "f16"), self._any(up, "f16"), act)

    def _activate(self, x: Operand, up: Operand | None, act: Act) -> Value:
        out = self.program.buffer(x.rows, x.width, x.dtype)
        self.program.launch(
            "activate", {"act": act, "rows": x.rows}, {"x": x, "up": up, "out": out}, ("out",)
        )
        return Stored({out.dtype: out})

    def moe(self, x: Value, name: str, moe: Moe, act: Act, dim: int, ffn: int) -> Value:
        """Every expert for every token, those not chosen times 0: the sum over experts is one product with [E·F, D]."""
        program = self.program
        logits = self._product(self.store(x, "f32"), (f"{name}.router",), (moe.experts,), dim, "f32")
        hidden = self._product(self.store(x, "f16"), (f"{name}.w1",), (moe.experts * ffn,), dim, "f16")
        weighed = program.buffer(hidden.rows, hidden.width, "f16")
        program.launch(
            "expert",
            {"act": act, "top_k": moe.top_k, "renormalize": moe.renormalize},
            {"logits": logits, "hidden": hidden, "out": weighed},
            ("out",),
        )
        out = program.buffer(hidden.rows, dim, "f16")
        w2 = program.matrix((f"{name}.w2.weight",), dim, "f16")
        bias = program.biases((name,), (dim,), "f16")
        program.steps.append(Product(x=weighed, weight=w2, bias=bias, out=out, transposed=True))
        return Stored({"f16": out})

    # --- attention

    def split(self, x: Value, heads: int, head_dim: int) -> Value:
        return Heads(self._any(x, "f16"), head_dim)

    def rope(self, x: Value, rope: Rope) -> Value:
        assert isinstance(x, Heads)
        return replace(x, rope=rope)

    def attention(self, q: Value, k: Value, v: Value, spec: Attention, site: str) -> Value:
        assert isinstance(q, Heads) and isinstance(k, Heads) and isinstance(v, Heads)
        q_ready, k_ready = self._prepared(q, k)
        bias, kind = self._bias(spec)
        out = self.program.buffer("tokens", spec.heads * spec.head_dim, "f16")
        operands = {
            "q": q_ready,
            "k": k_ready,
            "v": self.store(Stored({v.x.dtype: v.x}), "f16"),
            "work": self.program.input("work"),
            "bias": bias,
            "out": out,
        }
        attrs = {
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "scale": spec.scale,
            "causal": spec.causal,
            "window": spec.window,
            "softcap": spec.softcap,
            "bias_kind": kind,
        }
        self.program.launch("attention", attrs, operands, ("out",))
        return Stored({"f16": out})

    def _bias(self, spec: Attention) -> tuple[Operand | None, Literal["alibi", "distance"] | None]:
        if isinstance(spec.bias, RelativeBuckets):
            reach = spec.bias.max_distance
            bucket = positions.bucket_of_distance(spec.bias, reach + 1)
            table = self.program.weights["embed.buckets.weight"].float32()
            return self.program.constant("distance bias", np.ascontiguousarray(table[bucket].T)), "distance"
        if spec.bias == "alibi":
            return self.program.constant("alibi slopes", positions.alibi_slopes(spec.heads)[None]), "alibi"
        return None, None

    def _prepared(self, q: Heads, k: Heads) -> tuple[Operand, Operand]:
        """q and k after their norm and rotation, in one launch."""
        if q.norm is None and q.rope is None:
            return q.x, k.x
        program, rope = self.program, q.rope
        ntk = rope is not None and isinstance(rope.scaling, DynamicNtk)
        q_out, k_out = program.buffer("tokens", q.x.width, "f16"), program.buffer("tokens", k.x.width, "f16")
        q_norm, k_norm = self._norm_operands(q.norm), self._norm_operands(k.norm)
        operands = {
            "q": q.x,
            "k": k.x,
            "index": program.input("index") if rope else None,
            "owner": program.input("owner") if ntk else None,
            "lengths": program.input("lengths") if ntk else None,
            "frequencies": self._frequency_table(rope) if rope and not ntk else None,
            "q_weight": q_norm["weight"],
            "q_bias": q_norm["bias"],
            "k_weight": k_norm["weight"],
            "k_bias": k_norm["bias"],
            "q_out": q_out,
            "k_out": k_out,
        }
        program.launch("rope", _rope_attrs(q, ntk), operands, ("q_out", "k_out"))
        return q_out, k_out

    def _frequency_table(self, rope: Rope) -> Operand:
        if rope not in self._frequencies:
            key = f"rope {len(self._frequencies)}"
            self._frequencies[rope] = self.program.constant(key, positions.inv_freq(rope)[None])
        return self._frequencies[rope]

    # --- head

    def pool(self, x: Value, pooling: Pooling, include_prompt: bool) -> Value:
        return Pooled(self.store(x, "f32"), pooling, include_prompt)

    def _pool(self, x: Pooled, out: Operand) -> None:
        program = self.program
        operands = {
            "x": x.x,
            "starts": program.input("starts"),
            "lengths": program.input("lengths"),
            "prompts": None if x.include_prompt else program.input("prompts"),
            "out": out,
        }
        program.launch("pool", {"pooling": x.pooling}, operands, ("out",))

    def concat(self, parts: Sequence[Value]) -> Value:
        pooled = [part for part in parts if isinstance(part, Pooled)]
        assert len(pooled) == len(parts)
        whole = self.program.buffer("rows", sum(part.x.width for part in pooled), "f32")
        column = 0
        for part in pooled:
            width = part.x.width
            self._pool(part, msgspec.structs.replace(whole, width=width, column=column))
            column += width
        return Stored({"f32": whole})

    def to_float(self, x: Value) -> Value:
        return Stored({"f32": self.store(x, "f32")})

    def dense(self, x: Value, name: str, out: int, dim: int) -> Value:
        return Stored({"f32": self._product(self.store(x, "f32"), (name,), (out,), dim, "f32")})

    def normalize(self, x: Value) -> Value:
        source = self.store(x, "f32")
        out = self.program.buffer(source.rows, source.width, "f32")
        self.program.launch("normalize", {"rows": source.rows}, {"x": source, "out": out}, ("out",))
        return Stored({"f32": out})

    def tokens(self, x: Value) -> Value:
        return x


def _rope_attrs(q: Heads, ntk: bool) -> dict[str, Any]:
    grow = positions.ntk_growth(q.rope) if q.rope and ntk else positions.NtkGrowth(0.0, 1.0, 0.0)
    return {
        "head_dim": q.head_dim,
        "rotated": q.rope.dim if q.rope else 0,
        "interleaved": q.rope.interleaved if q.rope else False,
        "kind": q.norm.kind if q.norm else "none",
        "eps": q.norm.eps if q.norm else 0.0,
        "log2_theta": math.log2(q.rope.theta) if q.rope else 0.0,
        "slope": grow.slope,
        "offset": grow.offset,
        "power": grow.power,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class EmittedProgram:
    """A finished program with its device tensors and constants."""

    finished: Finished
    program: Program
    output: Operand
    stream: Stream


def emit_program(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    *,
    sm: int,
    stream: Stream | None = None,
    gelu: Gelu = "erf",
    precision: Policy = PLAIN,
) -> EmittedProgram:
    """The steps of ``run(cfg, head, …)``. ``stream`` None: fp16 after post-norms, else fp32; ``precision``'s scales
    are folded in."""
    chosen: Stream = stream or ("f16" if cfg.placement == "post" else "f32")
    own = dict(weights)
    program = Program(own)
    ops = CudaOps(program, chosen, gelu)
    output = ops.store(run(cfg, head, Folded(ops, own, precision, cfg)).value, "f32")
    return EmittedProgram(finished=program.finish(output, sm), program=program, output=output, stream=chosen)
