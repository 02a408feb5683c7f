// out = softmax(scale q kT) v within each text, with Hopper's own instructions: tiles come by the tensor memory accelerator,
// both products are warpgroup instructions (wgmma) that accumulate in fp32, and the weights never leave registers.
//
// A block computes tiles one after another: QUERIES queries of HEADS_A_TILE heads, 64 queries of one head a warpgroup. One
// more warp fetches: queries, then keys and values KEYS at a time, into rings that run on from one tile to the next, so that
// a short text's operands are there when its turn comes. A warpgroup asks for the scores of the next keys before the weighted
// values of these: the softmax of the one is computed while the tensor cores are at the other.
//
// Constants: H features a head, HEADS, KV_HEADS, HEADS_A_TILE, QUERIES, KEYS, STAGES, BLOCKS a multiprocessor, Q_BUFFERS,
// Q_IN_REGISTERS, OUT_STRIDE, SCALE, CAUSAL, WINDOW (-1: none), and those of hopper.cuh; scores() and weighted() come from
// `bei.kernels.hopper_attention`. Of 32 features are two heads side by side in a tile's rows, of more a row's parts of 64
// below each other.

constexpr int GROUP = HEADS / KV_HEADS, UNITS = HEADS / HEADS_A_TILE;
constexpr bool SHARED = GROUP % HEADS_A_TILE == 0;  // a tile's heads have the same keys and values
constexpr int WARPGROUPS = QUERIES / 64 * HEADS_A_TILE, THREADS = 128 * (WARPGROUPS + 1);
constexpr int Q_COLUMNS = HEADS_A_TILE * H, KV_COLUMNS = SHARED ? H : Q_COLUMNS;
constexpr int Q_BYTES = QUERIES * Q_COLUMNS * 2, KV_BYTES = KEYS * KV_COLUMNS * 2, OUT_BYTES = 16 * 128;
constexpr int CHUNK = H < 64 ? H : 64;  // columns that a warp stores at once
static_assert(SHARED || GROUP == 1, "a tile's heads have one head of keys and values, or one each");
// Registers of a thread: what the multiprocessor has, evenly at first, in eights; those that fetch give most of theirs away.
constexpr int AT_FIRST = 65536 / (BLOCKS * THREADS) / 8 * 8, LEFT = (AT_FIRST * (WARPGROUPS + 1) - 32) / WARPGROUPS / 8 * 8;
constexpr int REGISTERS = LEFT < 240 ? LEFT : 240;
constexpr float UNIT = SCALE * 1.4426950408889634f;

// --- values

__device__ __forceinline__ void put(u32 to, int4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

__device__ __forceinline__ int4 look_up(u32 from) {
    int4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(from)
                 : "memory");
    return x;
}

// --- the rings: what the fetching warp and the others agree on

struct Rings {
    u32 queries, keys, values, outs, tiles, q_full, q_empty, k_full, k_empty, v_full, v_empty;
};

__device__ __forceinline__ Rings rings_at(u32 memory) {
    Rings at;
    at.queries = (memory + 1023) & ~1023u;
    at.keys = at.queries + Q_BUFFERS * Q_BYTES;
    at.values = at.keys + STAGES * KV_BYTES;
    at.outs = at.values + STAGES * KV_BYTES;
    at.tiles = at.outs + WARPGROUPS * 4 * OUT_BYTES;
    at.q_full = at.tiles + 16 * Q_BUFFERS, at.q_empty = at.q_full + 8 * Q_BUFFERS;
    at.k_full = at.q_empty + 8 * Q_BUFFERS, at.k_empty = at.k_full + 8 * STAGES;
    at.v_full = at.k_empty + 8 * STAGES, at.v_empty = at.v_full + 8 * STAGES;
    return at;
}

// Keys that any of `queries` queries from `first` on sees.
__device__ __forceinline__ void range(int first, int queries, int length, int &begin, int &end) {
    begin = 0, end = length;
    if (CAUSAL) end = min(end, first + queries);
    if (WINDOW >= 0) begin = max(0, first - WINDOW), end = min(end, first + queries + WINDOW);
}

// The block's tile in a round: back and forth, as the work list begins with the longest texts.
__device__ __forceinline__ int tile_of(int round) {
    const int block = blockIdx.x, blocks = gridDim.x;
    return round * blocks + (round % 2 ? blocks - 1 - block : block);
}

// --- the warp that fetches

__device__ __forceinline__ void fetch_tiles(const Rings &at, const TensorMap &q, const TensorMap &k, const TensorMap &v,
                                            const int4 *work, int items) {
    const int lane = threadIdx.x % 32;
    int slot = 0, slot_parity = 1, stage = 0, parity = 1;
    int round = 0, tile = tile_of(0), before = 0;
    for (int ahead = 0; ahead < items; ahead += 32) {  // a lane looks at one of the next items
        int4 item = {0, 0, 0, 0};
        if (ahead + lane < items) item = work[ahead + lane];
        // Items begin at multiples of a smaller block: the others are a tile's further queries. Spare ones are empty.
        const bool begins = item.z < item.y && item.z % QUERIES == 0;
        const u32 begin_here = __ballot_sync(~0u, begins);
        const int number = before + __popc(begin_here & ((1u << lane) - 1));
        before += __popc(begin_here);
        for (; tile < before * UNITS; tile = tile_of(++round)) {
            const int from = __ffs(__ballot_sync(~0u, begins && number == tile / UNITS)) - 1, unit = tile % UNITS;
            const int start = __shfl_sync(~0u, item.x, from), length = __shfl_sync(~0u, item.y, from);
            const int first = __shfl_sync(~0u, item.z, from);
            if (lane != 0) continue;
            wait(at.q_empty + 8 * slot, slot_parity);
            put(at.tiles + 16 * slot, {start, length, first, unit});
            expect(at.q_full + 8 * slot, Q_BYTES);
#pragma unroll
            for (int part = 0; part < QUERIES / 64; ++part)
#pragma unroll
                for (int column = 0; column < Q_COLUMNS; column += 64)
                    fetch(at.queries + slot * Q_BYTES + (part * Q_COLUMNS + column) * 128, q, unit * Q_COLUMNS + column,
                          start + first + part * 64, at.q_full + 8 * slot);
            if (++slot == Q_BUFFERS) slot = 0, slot_parity ^= 1;
            int begin, end;
            range(first, QUERIES, length, begin, end);
            const int own = SHARED ? unit * HEADS_A_TILE / GROUP * H : unit * KV_COLUMNS;
#pragma unroll 1
            for (int key = begin; key < end; key += KEYS) {
                const u32 to = stage * KV_BYTES, full = 8 * stage;
                wait(at.k_empty + full, parity);
                expect(at.k_full + full, KV_BYTES);
#pragma unroll
                for (int column = 0; column < KV_COLUMNS; column += 64)
                    fetch(at.keys + to + column * KEYS * 2, k, own + column, start + key, at.k_full + full);
                wait(at.v_empty + full, parity);
                expect(at.v_full + full, KV_BYTES);
#pragma unroll
                for (int column = 0; column < KV_COLUMNS; column += 64)
                    fetch(at.values + to + column * KEYS * 2, v, own + column, start + key, at.v_full + full);
                if (++stage == STAGES) stage = 0, parity ^= 1;
            }
        }
    }
    if (lane == 0) {
        wait(at.q_empty + 8 * slot, slot_parity);
        put(at.tiles + 16 * slot, {0, 0, 0, 0});  // no length: the end
        expect(at.q_full + 8 * slot, 0);
    }
}

// --- what a warpgroup does with its 64 queries, 16 a warp; of every 8 columns a thread has two of row lane / 4 and two of
// the row eight below

template <int N>
__device__ __forceinline__ void settle(float (&x)[N]) {  // what is computed with x comes after this
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void send_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void load_queries(u32 (&a)[H / 4], u32 tile, int column) {
    const int lane = threadIdx.x % 32, matrix = lane / 8, row = threadIdx.x % 128 / 32 * 16 + matrix % 2 * 8 + lane % 8;
#pragma unroll
    for (int k = 0; k < H / 16; ++k) {
        const int unit = column / 8 + 2 * k + matrix / 2;
        const u32 from = tile + unit / 8 * 8192 + row * 128 + ((unit % 8 ^ row % 8) << 4);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(a[4 * k]), "=r"(a[4 * k + 1]), "=r"(a[4 * k + 2]), "=r"(a[4 * k + 3])
                     : "r"(from)
                     : "memory");
    }
}

// s = q kT; what a descriptor says of rows of 128 bytes, swizzled eight by eight, is in its other half.
__device__ __forceinline__ void ask_scores(float (&s)[KEYS / 2], const u32 (&a)[H / 4], u32 queries, u32 keys) {
    begin_products();
#pragma unroll
    for (int k = 0; k < H / 16; ++k) {
        const u32 b = (keys >> 4 | 1 << 16) + k / 4 * (KEYS * 128 >> 4) + k % 4 * 2;
#if Q_IN_REGISTERS
        scores(s, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3], b, k);
#else
        scores(s, (queries >> 4 | 1 << 16) + k / 4 * (8192 >> 4) + k % 4 * 2, b, k);
#endif
    }
    send_products();
}

// o += p v
__device__ __forceinline__ void ask_values(float (&o)[H / 2], const u32 (&p)[KEYS / 4], u32 values, int more) {
    begin_products();
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k)
        weighted(o, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3], (values >> 4 | (KEYS * 128 >> 4) << 16) + k * (2048 >> 4),
                 k ? 1 : more);
    send_products();
}

// Keys from `key` on that `row` (and `row` + 8) does not see get no weight.
__device__ __forceinline__ void hide(float (&s)[KEYS / 2], int key, int row, int length) {
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
        const int column = key + i / 4 * 8 + i % 2, away = column - row - i / 2 % 2 * 8;
        bool seen = column < length;
        if (CAUSAL) seen = seen && away <= 0;
        if (WINDOW >= 0) seen = seen && away <= WINDOW && away >= -WINDOW;
        if (!seen) s[i] = -__int_as_float(0x7f800000);
    }
}

// Scores to weights, relative to a peak that follows the highest score so far only when it is 2^8 behind: weights are
// floating-point numbers, as exact at 200. What was summed with earlier ones has to be multiplied by `shrink`.
__device__ __forceinline__ void weigh(float (&s)[KEYS / 2], float (&peak)[2], float (&total)[2], float (&shrink)[2]) {
    float high[4], sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) high[i % 4] = i < 4 ? s[i] : fmaxf(high[i % 4], s[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float most = fmaxf(high[2 * r], high[2 * r + 1]);
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = UNIT * fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float last = peak[r];  // finite, from the start: no hidden key has a weight
        if (most > last + 8) peak[r] = most;
        shrink[r] = exp2_of(last - peak[r]);
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
        s[i] = exp2_of(fmaf(s[i], UNIT, -peak[i / 2 % 2]));
        sum[i % 4] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) total[r] = fmaf(total[r], shrink[r], sum[2 * r] + sum[2 * r + 1]);
}

__device__ __forceinline__ void narrow(u32 (&p)[KEYS / 4], const float (&s)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; ++i) p[i] = pair_of(s[2 * i], s[2 * i + 1]);
}

// Values behind the text's last may be anything, and no weight makes 0 of NaN. Every warpgroup that reads them does this.
__device__ __forceinline__ void clear_values(u32 values, int from, int group) {
    for (int i = from * 8 + threadIdx.x % 128; i < KEYS * 8; i += 128)
#pragma unroll
        for (int half = 0; half < (H + 63) / 64; ++half)
            put(values + half * KEYS * 128 + i * 16, {0, 0, 0, 0});
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
}

// A warp's 16 rows, through shared memory so that a row's bytes are stored together; `rows` of them are the text's.
__device__ __forceinline__ void store(const float (&o)[H / 2], const float (&inverse)[2], u32 room, char *to, int rows) {
    constexpr int PIECES = CHUNK / 8, TOGETHER = 32 / PIECES;
    const int lane = threadIdx.x % 32, line = lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
    for (int chunk = 0; chunk < H / CHUNK; ++chunk) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < PIECES; j += 2) {
            const int i = 4 * (chunk * PIECES + j);
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                             room + line * 128 + ((j + lane / 16 ^ line % 8) << 4)),
                         "r"(pair_of(o[i] * inverse[0], o[i + 1] * inverse[0])),
                         "r"(pair_of(o[i + 2] * inverse[1], o[i + 3] * inverse[1])),
                         "r"(pair_of(o[i + 4] * inverse[0], o[i + 5] * inverse[0])),
                         "r"(pair_of(o[i + 6] * inverse[1], o[i + 7] * inverse[1]))
                         : "memory");
        }
        __syncwarp();
#pragma unroll
        for (int above = 0; above < 16; above += TOGETHER) {
            const int row = above + lane / PIECES, piece = lane % PIECES;
            const int4 y = look_up(room + row * 128 + ((piece ^ row % 8) << 4));
            if (row < rows) *(int4 *)(to + row * (OUT_STRIDE * 2LL) + chunk * CHUNK * 2 + piece * 16) = y;
        }
    }
}

// One warpgroup's queries from `row` on, over the tiles of keys from `key` on to `highest`: o, and what to multiply it by.
__device__ __forceinline__ void attend_rows(const Rings &at, const u32 (&a)[H / 4], u32 queries, u32 q_empty, u32 own, int row,
                                            int length, int key, int highest, u32 &count, float (&o)[H / 2], float (&inverse)[2]) {
    const int lane = threadIdx.x % 32, group = threadIdx.x / 128;
    float s[KEYS / 2], peak[2] = {-1e30f, -1e30f}, total[2] = {0, 0}, shrink[2];
    u32 p[KEYS / 4];
    auto weights = [&] {
        settle(s);
        const int to = key + KEYS - 1;
        const bool whole = to < length && (!CAUSAL || to <= row) && (WINDOW < 0 || to <= row + WINDOW && key >= row + 63 - WINDOW);
        if (!whole) hide(s, key + lane % 4 * 2, row + threadIdx.x % 128 / 32 * 16 + lane / 4, length);
        weigh(s, peak, total, shrink);
    };
    u32 stage = count % STAGES;
    wait(at.k_full + 8 * stage, count / STAGES % 2);
    ask_scores(s, a, queries, at.keys + stage * KV_BYTES + own);
    wait_products<0>();
    if (lane == 0) arrive(at.k_empty + 8 * stage);
    weights();
    narrow(p, s);
    int more = 0;
#pragma unroll 1
    for (key += KEYS; key < highest; key += KEYS) {
        const u32 next = (count + 1) % STAGES;
        wait(at.k_full + 8 * next, (count + 1) / STAGES % 2);
        ask_scores(s, a, queries, at.keys + next * KV_BYTES + own);
        wait(at.v_full + 8 * stage, count / STAGES % 2);
        ask_values(o, p, at.values + stage * KV_BYTES + own, more);
        wait_products<1>();
        if (lane == 0) arrive(at.k_empty + 8 * next);
        weights();
        wait_products<0>();
        settle(o);
        if (lane == 0) arrive(at.v_empty + 8 * stage);
        if (__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
            for (int i = 0; i < H / 2; ++i) o[i] *= shrink[i / 2 % 2];
        }
        narrow(p, s);
        more = 1, ++count, stage = next;
    }
    if (!Q_IN_REGISTERS && lane == 0) arrive(q_empty);
    wait(at.v_full + 8 * stage, count / STAGES % 2);
    const u32 values = at.values + stage * KV_BYTES;
    if (key > length) clear_values(values + own / (KEYS * 128) * (KEYS * 128), length - key + KEYS, group);
    ask_values(o, p, values + own, more);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        inverse[r] = 1 / total[r];
    }
    wait_products<0>();
    settle(o);
    if (lane == 0) arrive(at.v_empty + 8 * stage);
    ++count;
}

__device__ __forceinline__ void attend(const Rings &at, char *out) {
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), head = group % HEADS_A_TILE, part = group / HEADS_A_TILE;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Where this warpgroup's head begins in a tile of queries and of keys: whole columns of 64, and what is left.
    const u32 q_own = part * Q_COLUMNS * 128 + head * H / 64 * 8192, q_rest = head * H % 64;
    const u32 kv_own = SHARED ? 0 : head * H / 64 * (KEYS * 128) + head * H % 64 * 2;
    int slot = 0, parity = 0;
    u32 count = 0;  // tiles of keys so far: where the rings are
    auto skip = [&] {  // keys that only other warpgroups' queries see
        const u32 stage = count % STAGES;
        wait(at.k_full + 8 * stage, count / STAGES % 2);
        wait(at.v_full + 8 * stage, count / STAGES % 2);
        __syncwarp();
        if (lane == 0) arrive(at.k_empty + 8 * stage), arrive(at.v_empty + 8 * stage);
        ++count;
    };
    for (;;) {
        wait(at.q_full + 8 * slot, parity);
        int4 tile;
        if (lane == 0) tile = look_up(at.tiles + 16 * slot);  // who looks gives the place free, for all of the warp
        const int start = __shfl_sync(~0u, tile.x, 0), length = __shfl_sync(~0u, tile.y, 0);
        const int first = __shfl_sync(~0u, tile.z, 0), unit = __shfl_sync(~0u, tile.w, 0);
        if (length == 0) return;
        const u32 queries = at.queries + slot * Q_BYTES + q_own, q_empty = at.q_empty + 8 * slot;
        if (++slot == Q_BUFFERS) slot = 0, parity ^= 1;
        const int row = first + part * 64;
        int key, end, lowest, highest;
        range(first, QUERIES, length, key, end);
        range(row, 64, length, lowest, highest);
        const u32 last = count + (end - key + KEYS - 1) / KEYS;
        u32 a[H / 4];
        if (Q_IN_REGISTERS) {
            load_queries(a, queries, q_rest);
            __syncwarp();
        }
        if ((Q_IN_REGISTERS || row >= length) && lane == 0) arrive(q_empty);
        if (row < length) {
#pragma unroll 1
            for (; key + KEYS <= lowest; key += KEYS) skip();
            float o[H / 2], inverse[2];
            attend_rows(at, a, queries + q_rest * 2, q_empty, kv_own, row, length, key, highest, count, o, inverse);
            const int mine = row + warp % 4 * 16;  // the warp's first row
            char *to = out + (start + mine) * (OUT_STRIDE * 2LL) + (unit * HEADS_A_TILE + head) * (H * 2);
            store(o, inverse, at.outs + warp * OUT_BYTES, to, length - mine);
        }
#pragma unroll 1
        while (count != last) skip();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
              const int4 *work, char *out, int items) {
    extern __shared__ unsigned char memory[];
    const Rings at = rings_at((u32)__cvta_generic_to_shared(memory));
    if (threadIdx.x == 0) {
        for (int b = 0; b < Q_BUFFERS; ++b) init(at.q_full + 8 * b, 1), init(at.q_empty + 8 * b, 4 * WARPGROUPS);
        for (int s = 0; s < STAGES; ++s) {
            init(at.k_full + 8 * s, 1), init(at.k_empty + 8 * s, 4 * WARPGROUPS);
            init(at.v_full + 8 * s, 1), init(at.v_empty + 8 * s, 4 * WARPGROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= 128 * WARPGROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (threadIdx.x < 128 * WARPGROUPS + 32) fetch_tiles(at, q, k, v, work, items);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
        attend(at, out);
    }
}
