// out = act(x Wt + b) + residual, or gated act(x Gt + b) (x Ut + c), with Hopper's own instructions: tiles come by the tensor
// memory accelerator, products are warpgroup instructions (wgmma) and accumulate in fp32.
//
// A cluster of two blocks computes two tiles of 128 rows, one below the other: each fetches its rows of x and half of the
// tile's rows of W, which both receive. One warpgroup of a block fetches. The other two compute whole tiles in turn, so that
// the activation of one tile is computed, and its result stored, while the tensor cores are at the next; or, TOGETHER, half
// a tile each, which can then be wider.
//
// Constants: K features of x, N columns of out, TN rows of W a tile has (of G and U together), OUT columns a tile of out has,
// CHUNK columns stored at once, STAGES, TOGETHER, ACT, GATED, BIAS, RESIDUAL, BF16; mma() comes from `bei.kernels.hopper`.

typedef unsigned int u32;
typedef unsigned long long u64;

struct __align__(64) TensorMap {
    u64 words[16];
};

constexpr int TM = 128, TK = 64, STEPS = (K + TK - 1) / TK;
constexpr int A_BYTES = TM * TK * 2, B_BYTES = TN * TK * 2, STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int HALVES = TOGETHER ? 1 : 2, OUT_BYTES = HALVES * 64 * CHUNK * 2, CHUNKS = OUT / CHUNK, OUT_BUFFERS = 2;
constexpr int COLUMN_TILES = (N + OUT - 1) / OUT;

// --- barriers in shared memory

__device__ __forceinline__ void init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier, u32 block) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}\n" ::"r"(barrier),
        "r"(block)
        : "memory");
}

__device__ __forceinline__ void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ void meet_warpgroup(int number) {
    asm volatile("bar.sync %0, 128;" ::"r"(number) : "memory");
}

// The warpgroups that compute take turns: a barrier in shared memory tells only odd phases from even ones, so that the one
// may wait for its first stage only when the other has seen its last.
__device__ __forceinline__ void meet_other(int number) {
    asm volatile("bar.sync %0, 256;" ::"r"(number) : "memory");
}

__device__ __forceinline__ void call_other(int number) {
    asm volatile("bar.arrive %0, 256;" ::"r"(number) : "memory");
}

// The changing half of a matrix descriptor; the other says: rows of 128 bytes, swizzled, eight by eight.
__device__ __forceinline__ u32 descriptor(u32 address) { return address >> 4 | 1 << 16; }

// --- copies of tiles

__device__ __forceinline__ void fetch(u32 to, const TensorMap &map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

__device__ __forceinline__ void fetch_for_both(u32 to, const TensorMap &map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"((unsigned short)3)
        : "memory");
}

__device__ __forceinline__ void store(const TensorMap &map, u32 from, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column),
                 "r"(row), "r"(from)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// --- values

__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float inverse(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// As `bei.kernels.activate`, which says where the numbers are from.
__device__ __forceinline__ float act(float x) {
    if (ACT == 1) {
        float a = fabsf(x);
        float p = fmaf(a, -1.7935298046722892e-06f, 6.0720223700627685e-05f);
        p = fmaf(a, p, -0.0009231297299265862f);
        p = fmaf(a, p, 0.008476581424474716f);
        p = fmaf(a, p, -0.05389028415083885f);
        p = fmaf(a, p, -0.4585423469543457f);
        p = fmaf(a, p, -1.1512141227722168f);
        p = fmaf(a, p, -1.0f);
        return fmaf(-a, exp2_of(p), fmaxf(x, 0.0f));
    }
    if (ACT == 2) return x * inverse(1 + exp2_of(x * fmaf(x * x, -0.10294324f, -2.3022082f)));
    if (ACT == 3) return x * inverse(1 + exp2_of(x * -1.4426950408889634f));
    if (ACT == 4) return fmaxf(x, 0.0f);
    if (ACT == 5) return 1 - 2 * inverse(1 + exp2_of(x * 2.8853900817779268f));
    if (ACT == 6) return inverse(1 + exp2_of(x * -1.4426950408889634f));
    return x;
}

#if BF16
#define NARROW "cvt.rn.bf16x2.f32 %0, %1, %2;"
__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
#else
#define NARROW "cvt.rn.f16x2.f32 %0, %1, %2;"
__device__ __forceinline__ float low(u32 pair) {
    float y;
    asm("{.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, l;}" : "=f"(y) : "r"(pair));
    return y;
}
__device__ __forceinline__ float high(u32 pair) {
    float y;
    asm("{.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, h;}" : "=f"(y) : "r"(pair));
    return y;
}
#endif

__device__ __forceinline__ u32 pair_of(float first, float second) {
    u32 pair;
    asm(NARROW : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

__device__ __forceinline__ u32 biases(const void *bias, int column) {
    if (!BIAS || column >= N) return 0;
    u32 pair;
    asm("ld.global.nc.b32 %0, [%1];" : "=r"(pair) : "l"((const char *)bias + 2 * column));
    return pair;
}

// Columns 8 j … of a tile in a thread: two of a row and two of the row eight below; there is the residual before.
__device__ __forceinline__ void finish(const float (&sums)[TN / 2], const void *bias, int j, int column, u32 &upper, u32 &lower) {
    u32 b = biases(bias, column);
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = act(sums[4 * j + i] + (i % 2 ? high(b) : low(b)));
    if (GATED) {
        u32 c = biases((const char *)bias + 2 * N, column);
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] *= sums[4 * (j + OUT / 8) * GATED + i] + (i % 2 ? high(c) : low(c));
    }
    if (RESIDUAL) {
        y[0] += low(upper), y[1] += high(upper);
        y[2] += low(lower), y[3] += high(lower);
    }
    upper = pair_of(y[0], y[1]);
    lower = pair_of(y[2], y[3]);
}

// --- the kernel

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    linear(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
#if BIAS
           const void *bias,
#endif
#if RESIDUAL
           const __grid_constant__ TensorMap residual,
#endif
           const __grid_constant__ TensorMap out, int rows) {
#if !BIAS
    const void *bias = nullptr;
#endif
    extern __shared__ unsigned char memory[];
    const u32 stages = ((u32)__cvta_generic_to_shared(memory) + 1023) & ~1023u;
    const u32 outs = stages + STAGES * STAGE_BYTES;
    const u32 full = outs + 2 * OUT_BUFFERS * OUT_BYTES, empty = full + 8 * STAGES, ready = empty + 8 * STAGES;
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    const int cluster = blockIdx.y, clusters = gridDim.y;
    const int tiles = (rows + 2 * TM - 1) / (2 * TM) * COLUMN_TILES;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            init(full + 8 * s, 1);
            init(empty + 8 * s, TOGETHER ? 4 : 2);  // every warpgroup that read a stage says so to both blocks
        }
        for (int b = 0; b < 2 * OUT_BUFFERS; ++b) init(ready + 8 * b, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    meet_cluster();

    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0) {
            int stage = 0, parity = 1;
            for (int tile = cluster; tile < tiles; tile += clusters) {
                const int row = (tile / COLUMN_TILES * 2 + rank) * TM, column = tile % COLUMN_TILES * OUT;
                // Of W, block 0 fetches the upper half and block 1 the lower; of a gate, G and U.
                const int part = column + rank * (GATED ? N : TN / 2);
#pragma unroll 1
                for (int step = 0; step < STEPS; ++step) {
                    wait(empty + 8 * stage, parity);
                    expect(full + 8 * stage, STAGE_BYTES);
                    const u32 to = stages + stage * STAGE_BYTES;
                    fetch(to, x, step * TK, row, full + 8 * stage);
                    fetch_for_both(to + A_BYTES + rank * (B_BYTES / 2), weight, step * TK, part, full + 8 * stage);
                    if (++stage == STAGES) stage = 0, parity ^= 1;
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        const int group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
        const u32 mine = outs + group * OUT_BUFFERS * OUT_BYTES, arrived = ready + group * OUT_BUFFERS * 8;
        int turn = 0, buffer = 0, parities = 0;
        float sums[HALVES][TN / 2];
        for (int tile = cluster; tile < tiles; tile += clusters, ++turn) {
            if (!TOGETHER && turn % 2 != group) continue;
            const int row = (tile / COLUMN_TILES * 2 + rank) * TM + TOGETHER * group * 64, column = tile % COLUMN_TILES * OUT;
#if RESIDUAL
            if (thread == 0) {
                asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                expect(arrived + 8 * buffer, OUT_BYTES);
                fetch(mine + buffer * OUT_BYTES, residual, column, row, arrived + 8 * buffer);
            }
#endif
            if (!TOGETHER && turn > 0) meet_other(3 + group);
            int stage = turn * STEPS % STAGES, parity = turn * STEPS / STAGES % 2, last = 0;
#pragma unroll 1
            for (int step = 0; step < STEPS; ++step) {
                wait(full + 8 * stage, parity);
                const u32 a = descriptor(stages + stage * STAGE_BYTES), b = a + (A_BYTES >> 4);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int k = 0; k < TK / 16; ++k) {
#pragma unroll
                    for (int half = 0; half < HALVES; ++half)
                        mma(sums[half], a + (TOGETHER ? group : half) * (A_BYTES / 2 >> 4) + 2 * k, b + 2 * k, k ? 1 : step);
                }
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                if (step > 0) {
                    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                    if (lane == 0 && warp < 2) arrive(empty + 8 * last, warp);
                }
                last = stage;
                if (++stage == STAGES) stage = 0, parity ^= 1;
            }
            if (!TOGETHER && tile + clusters < tiles) call_other(3 + 1 - group);
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (lane == 0 && warp < 2) arrive(empty + 8 * last, warp);

            const int matrix = lane / 8, line = warp * 16 + matrix % 2 * 8 + lane % 8;  // whose address this lane gives
            constexpr int UNITS = CHUNK / 8;
            const int turned = UNITS == 8 ? line % 8 : line / 2 % 4;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                const u32 to = mine + buffer * OUT_BYTES;
#if RESIDUAL
                if (thread == 0 && chunk + 1 < CHUNKS) {
                    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                    expect(arrived + 8 * (buffer ^ 1), OUT_BYTES);
                    fetch(mine + (buffer ^ 1) * OUT_BYTES, residual, column + (chunk + 1) * CHUNK, row, arrived + 8 * (buffer ^ 1));
                }
                wait(arrived + 8 * buffer, parities >> buffer & 1);
                parities ^= 1 << buffer;
#else
                if (thread == 0) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
                meet_warpgroup(1 + group);
#endif
                buffer ^= 1;
#pragma unroll
                for (int half = 0; half < HALVES; ++half) {
#pragma unroll
                    for (int j = 0; j < UNITS; j += 2) {
                        const u32 at = to + (half * 64 + line) * (CHUNK * 2) + (((j + matrix / 2) ^ turned) << 4);
                        u32 r[4];
#if RESIDUAL
                        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                                     : "r"(at)
                                     : "memory");
#endif
#pragma unroll
                        for (int i = 0; i < 2; ++i)
                            finish(sums[half], bias, chunk * UNITS + j + i, column + (chunk * UNITS + j + i) * 8 + lane % 4 * 2,
                                   r[2 * i], r[2 * i + 1]);
                        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]),
                                     "r"(r[1]), "r"(r[2]), "r"(r[3])
                                     : "memory");
                    }
                }
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                meet_warpgroup(1 + group);
                if (thread == 0) store(out, to, column + chunk * CHUNK, row);
            }
        }
        if (thread == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    meet_cluster();  // a block may not end while the other still sends to it
}
