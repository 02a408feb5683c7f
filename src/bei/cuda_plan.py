"""The launch plan of the CUDA engine: what its compiler writes and its executor reads.

A plan is an explicit list of steps over operands in an arena, with the compiled kernels and small constants inside.
Sizes depend on three numbers of a batch: ``tokens`` T, ``rows`` B (texts) and ``work`` W (attention's query blocks);
``slots`` S, where tokens lie sorted by expert, follows from T. ``processors`` is how many multiprocessors the GPU has,
``clusters`` how many clusters of a kernel's blocks it runs at once.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from bei.errors import BundleError

PLAN_VERSION = 5

Symbol = Literal["tokens", "rows", "work", "slots", "one", "processors", "clusters"]
DType = Literal["f16", "f32", "bf16", "i32"]
Epilogue = Literal["none", "relu", "gelu_tanh"]

ITEMSIZE: dict[DType, int] = {"f16": 2, "f32": 4, "bf16": 2, "i32": 4}

INPUTS: dict[str, tuple[Symbol, int]] = {
    "ids": ("tokens", 1),
    "types": ("tokens", 1),
    "index": ("tokens", 1),
    "positions": ("tokens", 1),
    "owner": ("tokens", 1),
    "starts": ("rows", 1),
    "lengths": ("rows", 1),
    "prompts": ("rows", 1),
    "work": ("work", 4),
}
"""int32 inputs: symbol, columns. ``index`` is a token's place in its text, ``positions`` its row of the position
table, ``owner`` its text; ``starts`` a text's first token; ``work`` (first token, length, first query, 0)."""


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable and strict."""


class Size(_Data, frozen=True, kw_only=True):
    """ceil((sizes[symbol] · times + plus) / per); the symbol ``one`` is 1."""

    symbol: Symbol
    times: int = 1
    per: int = 1
    plus: int = 0

    def of(self, sizes: Mapping[str, int]) -> int:
        """The number for a batch; ``sizes`` by symbol."""
        return -(-(sizes.get(self.symbol, 1) * self.times + self.plus) // self.per)


class Operand(_Data, frozen=True, kw_only=True):
    """A row-major [symbol, width] matrix: rows ``stride`` elements apart, beginning at element ``column``.

    ``name`` is an arena buffer, a weight or one of `INPUTS`.
    """

    place: Literal["arena", "weight", "input"]
    name: str
    rows: Symbol
    dtype: DType
    width: int
    stride: int
    column: int = 0


class Box(_Data, frozen=True, kw_only=True):
    """A tile of an operand that one copy of the tensor memory accelerator moves: the kernel's parameter is a tensor map
    instead of an address (cuTensorMapEncodeTiled). ``swizzle``: bytes; a row of the box has as many.

    ``height``: rows the operand has, None where its symbol says so; what lies beyond reads as 0 and is not written.
    """

    rows: int
    columns: int
    swizzle: Literal[64, 128]
    height: int | None = None


class Few(_Data, frozen=True, kw_only=True):
    """What takes the place of a launch's function, grid and boxes while its first size is at most ``most``."""

    most: int
    function: str
    grid: tuple[Size, ...]
    boxes: dict[str, Box] = {}


class Launch(_Data, frozen=True, kw_only=True, tag="launch"):
    """One kernel launch: ``op`` and ``attrs`` say what it computes (`bei.kernels.<op>.reference`), the rest how.

    ``function`` is a key of the plan's functions; ``operands`` in the kernel's parameter order (None: compiled out),
    then ``sizes`` as int32. ``boxes``: operands passed as tensor maps. ``few``: other forms for small batches, the
    smallest first.
    """

    op: str
    attrs: dict[str, Any]
    operands: dict[str, Operand | None]
    writes: tuple[str, ...]
    function: str = ""
    grid: tuple[Size, ...] = ()
    sizes: tuple[Symbol, ...] = ()
    boxes: dict[str, Box] = {}
    few: tuple[Few, ...] = ()

    def form(self, sizes: Mapping[str, int]) -> "Launch | Few":
        """Whose function, grid and boxes serve a batch; ``sizes`` by symbol."""
        return next((few for few in self.few if sizes[self.sizes[0]] <= few.most), self)


class Product(_Data, frozen=True, kw_only=True, tag="product"):
    """out = epilogue(x · Wᵀ + bias), fp32 accumulation; W [width of out, width of x], or ``transposed`` [x, out]."""

    x: Operand
    weight: Operand
    bias: Operand | None
    out: Operand
    transposed: bool = False
    epilogue: Epilogue = "none"


Step = Launch | Product


class Function(_Data, frozen=True, kw_only=True):
    """A compiled kernel: ``scratch`` null pointers follow the sizes (Triton's scratch parameters, unused here). ``cluster``
    blocks run side by side and share memory."""

    cubin: bytes
    symbol: str
    threads: int
    shared: int
    scratch: int
    cluster: int = 1


class Buffer(_Data, frozen=True, kw_only=True):
    """A region of the arena of its symbol: [offset · n, (offset + row_bytes) · n) for n tokens, rows or slots."""

    rows: Symbol
    offset: int
    row_bytes: int


class Part(_Data, frozen=True, kw_only=True):
    """``count`` stored values times ``scale`` go to element ``at`` of a weight; ``file`` None: the plan's constants."""

    file: str | None
    offset: int
    dtype: Literal["F16", "F32", "BF16"]
    count: int
    at: int = 0
    scale: float = 1.0


class WeightTensor(_Data, frozen=True, kw_only=True):
    """A device tensor of ``count`` elements put together from parts; the rest is zero."""

    dtype: DType
    count: int
    parts: tuple[Part, ...]


class Waves(_Data, frozen=True, kw_only=True):
    """How a schedule's steps divide the tokens: each cluster of ``function``'s blocks computes ``rows`` at a time, all that the
    GPU runs at once together. At least ``full`` of the rows of a batch that is rounded up to that must be its own."""

    function: str
    rows: int
    full: float

    def serve(self, tokens: int, clusters: int) -> bool:
        """Whether a batch nearly fills its last wave; ``clusters`` the GPU runs at once."""
        wave = self.rows * clusters
        return clusters > 0 and tokens >= self.full * -(-tokens // wave) * wave


class Schedule(_Data, frozen=True, kw_only=True):
    """What is done for batches of ``least`` tokens and more, of those that ``waves`` serve: ``steps``, where their ``buffers``
    are, the head's result."""

    least: int
    waves: Waves | None = None
    steps: tuple[Step, ...]
    buffers: dict[str, Buffer]
    output: Operand


class Plan(_Data, frozen=True, kw_only=True):
    """One engine for one SM. ``schedules``: the smallest ``least`` first, which is 0 and serves all; all have outputs of one
    form.

    ``arena`` bytes a token, a row and a slot of a batch need; ``slots`` how many slots it has.

    ``conversions``: how a stored dtype becomes a device one, by "F32:f16".
    ``gelu`` "tanh": erf-GELU is approximated in the epilogue of its product.
    ``query_block``: queries a work item covers. ``inputs``: the `INPUTS` read.
    """

    version: int
    sm: int
    triton: str
    stream: Literal["f16", "f32"]
    gelu: Literal["erf", "tanh"]
    schedules: tuple[Schedule, ...]
    functions: dict[str, Function]
    arena: dict[Symbol, int]
    weights: dict[str, WeightTensor]
    conversions: dict[str, Launch]
    constants: bytes
    inputs: tuple[str, ...]
    query_block: int
    position_pad: int | None
    slots: Size | None = None

    def schedule(self, tokens: int, clusters: Callable[[str], int]) -> Schedule:
        """Which serves a batch of so many tokens: the last that can. ``clusters`` of a function the GPU runs at once."""
        return next(
            each
            for each in reversed(self.schedules)
            if each.least <= tokens
            and (each.waves is None or each.waves.serve(tokens, clusters(each.waves.function)))
        )

    @property
    def output(self) -> Operand:
        """The form of the head's result; where it is, each schedule says for itself."""
        return self.schedules[0].output


def encode_plan(plan: Plan) -> bytes:
    """MessagePack bytes."""
    return msgspec.msgpack.encode(plan)


def decode_plan(data: bytes, where: str) -> Plan:
    """Parse; ``where`` names the file in errors. Raises BundleError."""
    try:
        version = msgspec.msgpack.decode(data, type=_Version).version
        if version != PLAN_VERSION:
            raise BundleError(
                f"{where}: plan version {version}, but this bei reads {PLAN_VERSION}. Rebuild with bei-compile."
            )
        return msgspec.msgpack.decode(data, type=Plan)
    except msgspec.DecodeError as error:
        raise BundleError(f"{where}: not a launch plan ({error}). Rebuild with bei-compile.") from None


class _Version(msgspec.Struct):
    """The one field that every version of the format has."""

    version: int
