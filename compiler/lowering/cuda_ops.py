"""The encoder as a launch plan: `Ops` whose values are lazy, so that sums, norms, gathers and rotations meet in one kernel.

Packed tokens, products with fp32 accumulation over fp16 values (bf16 or fp32 in the policy's islands); sums and
statistics in fp32 registers. The residual stream is stored in ``stream``: fp16 where every stored value is a norm's
output (post-norm) or the precision policy found that it holds, otherwise fp32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from bei.adapters.config import Act, EncoderConfig, Moe, NormKind, Rope
from bei.adapters.head import Head, Pooling
from bei.compiler.encoder import run
from bei.compiler.lowering.cuda_attention import emit_attention, emit_rope, norm_operands
from bei.compiler.lowering.cuda_experts import Mixture, dense, grouped
from bei.compiler.lowering.cuda_options import CudaOptions, Stream
from bei.compiler.lowering.cuda_program import Program
from bei.compiler.lowering.cuda_steps import linear_of
from bei.compiler.lowering.cuda_values import Embedding, Heads, Norm, Pooled, Stored, Sum, Value
from bei.compiler.ops import Attention, Index
from bei.compiler.precision.folding import Folded
from bei.compiler.precision.policy import PLAIN, Policy, Wide, unit_of
from bei.compiler.weights import Weight
from bei.cuda_plan import DType, Epilogue, Operand, Product
from bei.errors import LoweringError

EXACT_EPILOGUES: dict[Act, Epilogue] = {"relu": "relu", "gelu_tanh": "gelu_tanh"}
"""Activations that cuBLASLt's epilogues compute as the model defines them."""
WIDE: dict[Wide, DType] = {"bf16": "bf16", "fp32": "f32"}


@dataclass(slots=True)
class CudaOps:
    """`Ops` that writes a `Program`. ``islands``: units whose values are stored in a wider type than fp16. ``last``: what pooling
    reads, which after a post-norm is the stream itself."""

    program: Program
    stream: Stream
    last: Stream
    options: CudaOptions
    islands: Mapping[str, Wide] = field(default_factory=dict)

    def _dtype(self, site: str) -> DType:
        """What a site of the encoder's body stores."""
        wide = self.islands.get(unit_of(site) or "")
        return "f16" if wide is None else WIDE[wide]

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
                x.stored.parts["f32"] = self._pool(x, self.program.buffer("rows", x.x.width, "f32"))
        return x.stored.parts

    def _any(self, x: Value, want: DType) -> Operand:
        """The value in ``want``'s precision if it is there, else in whatever it is."""
        parts = self._parts(x)
        return parts.get(want) or next(iter(parts.values()))

    def _outputs(self, like: Operand, parts: dict[DType, Operand], summed: bool) -> dict[str, Operand | None]:
        """total, half, brain, full: candidates, dropped later where nothing reads them."""
        rows, width = like.rows, like.width
        keep: DType = self.stream if rows == "tokens" else "f32"
        total = self.program.buffer(rows, width, keep) if summed else None
        names: dict[str, DType] = {"half": "f16", "brain": "bf16", "full": "f32"}
        made = {name: self.program.buffer(rows, width, dtype) for name, dtype in names.items()}
        for operand in made.values():
            parts.setdefault(operand.dtype, operand)
        return {"total": total, **made}

    def _add_norm(
        self,
        x: Operand,
        a: Operand | None,
        norm: Norm | None,
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
        operands = {"x": x, "a": a, **norm_operands(self.program, norm), **out}
        self.program.launch("add_norm", attrs, operands, tuple(out))
        return out["total"]

    # --- embeddings

    def embed(self, name: str, index: Index, rows: int, dim: int) -> Value:
        return Embedding({index: name}, dim)

    def row(self, name: str, dim: int) -> Value:
        return Embedding({"types": name}, dim, row=True)

    def _gather(self, x: Embedding, norm: Norm | None, parts: dict[DType, Operand]) -> Operand | None:
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
            **norm_operands(self.program, norm),
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
        norm = Norm(name, kind, eps)
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
        dtype = self._dtype(names[0])
        out = self._product(self.store(x, dtype), names, outs, dim, dtype)
        columns = np.cumsum([0, *outs[:-1]])
        views = [
            msgspec.structs.replace(out, width=n, column=int(c)) for n, c in zip(outs, columns, strict=True)
        ]
        return [Stored({dtype: view}) for view in views]

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
        source = self._any(x, "f32" if site is None else self._dtype(site))
        form: Act = "gelu_tanh" if act == "gelu" and self.options.gelu == "tanh" else act
        last = self._just_made(source) if site else None
        if last is not None and form in EXACT_EPILOGUES:
            self.program.steps[-1] = msgspec.structs.replace(last, epilogue=EXACT_EPILOGUES[form])
            return Stored({source.dtype: source})
        if last is not None and last.out == source and self.options.fuses:
            return self._fused(last, act, source.width, gated=False)
        return self._activate(source, None, act)

    def gate(self, gate: Value, up: Value, act: Act, site: str) -> Value:
        dtype = self._dtype(site)
        g, u = self._any(gate, dtype), self._any(up, dtype)
        last = self._just_made(g)
        if last is not None and self.options.fuses and last is self._just_made(u):
            return self._fused(last, act, g.width, gated=True)
        return self._activate(g, u, act)

    def _just_made(self, x: Operand) -> Product | None:
        """The last step, if it is a plain product that made x."""
        last = self.program.steps[-1]
        plain = isinstance(last, Product) and last.epilogue == "none"
        return last if plain and isinstance(last, Product) and last.out.name == x.name else None

    def _fused(self, product: Product, act: Act, width: int, *, gated: bool) -> Value:
        """A product and what follows it, in the place of the product."""
        out = self.program.buffer(product.x.rows, width, product.out.dtype)
        self.program.steps[-1] = linear_of(product, out, act, gated=gated)
        return Stored({out.dtype: out})

    def _activate(self, x: Operand, up: Operand | None, act: Act) -> Value:
        out = self.program.buffer(x.rows, x.width, x.dtype)
        self.program.launch(
            "activate", {"act": act, "rows": x.rows}, {"x": x, "up": up, "out": out}, ("out",)
        )
        return Stored({out.dtype: out})

    def moe(self, x: Value, name: str, moe: Moe, act: Act, dim: int, ffn: int) -> Value:
        dtype = self._dtype(name)
        logits = self._product(self.store(x, "f32"), (f"{name}.router",), (moe.experts,), dim, "f32")
        mixture = Mixture(name=name, moe=moe, act=act, dim=dim, ffn=ffn, dtype=dtype)
        emit = grouped if self.options.groups else dense
        out = emit(self.program, mixture, self.store(x, dtype), logits)
        return Stored({dtype: out})

    # --- attention

    def split(self, xs: Sequence[Value], heads: Sequence[int], head_dim: int) -> list[Value]:
        return [Heads(x, head_dim) for x in xs]

    def rope(self, x: Value, rope: Rope, head_dim: int) -> Value:
        assert isinstance(x, Heads)
        return replace(x, rope=rope)

    def attention(self, q: Value, k: Value, v: Value, spec: Attention, site: str) -> Value:
        assert isinstance(q, Heads) and isinstance(k, Heads) and isinstance(v, Heads)
        dtype = self._dtype(site)
        q_at, k_at, v_at = (self.store(heads.x, dtype) for heads in (q, k, v))
        if q.norm is not None or q.rope is not None:
            q_at, k_at = emit_rope(self.program, q, q_at, k_at, k.norm)
        return Stored({dtype: emit_attention(self.program, q_at, k_at, v_at, spec)})

    # --- head

    def pool(self, x: Value, pooling: Pooling, include_prompt: bool) -> Value:
        return Pooled(self.store(x, self.last), pooling, include_prompt)

    def _pool(self, x: Pooled, out: Operand) -> Operand:
        program = self.program
        operands = {
            "x": x.x,
            "starts": program.input("starts"),
            "lengths": program.input("lengths"),
            "prompts": None if x.include_prompt else program.input("prompts"),
            "out": out,
        }
        program.launch("pool", {"pooling": x.pooling}, operands, ("out",))
        return out

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
        full = self.store(x, "f32")
        return x if isinstance(x, Stored) else Stored({"f32": full})

    def dense(self, x: Value, name: str, out: int, dim: int) -> Value:
        return Stored({"f32": self._product(self.store(x, "f32"), (name,), (out,), dim, "f32")})

    def normalize(self, x: Value) -> Value:
        source = self.store(x, "f32")
        out = self.program.buffer(source.rows, source.width, "f32")
        self.program.launch("normalize", {"rows": source.rows}, {"x": source, "out": out}, ("out",))
        return Stored({"f32": out})

    def tokens(self, x: Value) -> Value:
        return x


@dataclass(frozen=True, kw_only=True, slots=True)
class EmittedProgram:
    """A program, to be finished for one kind of batches or another, and where the head's result is."""

    program: Program
    output: Operand
    stream: Stream


def emit_program(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    options: CudaOptions,
    precision: Policy = PLAIN,
) -> EmittedProgram:
    """The steps of ``run(cfg, head, …)``, ``precision``'s scales folded in and its islands stored in wider types."""
    half = cfg.placement == "post" or precision.fp16_stream
    stream: Stream = options.stream or ("f16" if half else "f32")
    own = dict(weights)
    program = Program(own)
    last: Stream = stream if cfg.placement == "post" else "f32"
    ops = CudaOps(program, stream, last, options, precision.islands)
    output = ops.store(run(cfg, head, Folded(ops, own, precision, cfg)).value, "f32")
    return EmittedProgram(program=program, output=output, stream=stream)
