// out = act(x Wt + b) + residual, or gated act(x Gt + b) (x Ut + c), with Hopper's own instructions: tiles come by the tensor
// memory accelerator, products are warpgroup instructions (wgmma) and accumulate in fp32.
//
// A cluster of two blocks computes two tiles of 128 rows, one below the other: each fetches its rows of x and half of the
// tile's rows of W, which both receive. One warpgroup of a block fetches. The other two compute whole tiles in turn, so that
// the activation of one tile is computed, and its result stored, while the tensor cores are at the next; or, TOGETHER, half
// a tile each, which can then be wider.
//
// Constants: K features of x, N columns of out, TN rows of W a tile has (of G and U together), OUT columns a tile of out has,
// CHUNK columns stored at once, BACKWARDS: the last rows first; ACT, GATED, BIAS, RESIDUAL, and those of hopper.cuh and
// hopper_product.cuh.

constexpr int LINES = TOGETHER ? 64 : 128, OUT_BYTES = LINES * CHUNK * 2, CHUNKS = OUT / CHUNK, OUT_BUFFERS = 2;
constexpr int COLUMN_TILES = (N + OUT - 1) / OUT;

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

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)
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
    const u32 barriers = outs + 2 * OUT_BUFFERS * OUT_BYTES, ready = barriers + 16 * STAGES;
    const Ring ring = {stages, barriers, barriers + 8 * STAGES};
    const u32 rank = rank_in_cluster();
    const int cluster = blockIdx.y, clusters = gridDim.y;
    const int row_tiles = (rows + 2 * TM - 1) / (2 * TM), tiles = row_tiles * COLUMN_TILES;
    const auto row_tile = [&](int tile) { return BACKWARDS ? row_tiles - 1 - tile / COLUMN_TILES : tile / COLUMN_TILES; };

    if (threadIdx.x == 0) {
        ring.start();
        for (int b = 0; b < 2 * OUT_BUFFERS; ++b) init(ready + 8 * b, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    meet_cluster();

    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0) {
            int slot = 0;
            for (int tile = cluster; tile < tiles; tile += clusters) {
                const int row = (row_tile(tile) * 2 + rank) * TM, column = tile % COLUMN_TILES * OUT;
                // Of W, block 0 fetches the upper half and block 1 the lower; of a gate, G and U.
                const int part = column + rank * (GATED ? N : TN / 2);
#pragma unroll 1
                for (int step = 0; step < STEPS; ++step, ++slot) {
                    const u32 to = ring.claim(slot, STAGE_BYTES);
                    fetch(to, x, step * TK, row, ring.barrier(slot));
                    fetch_for_all<CLUSTER>(to + A_BYTES + rank * (B_BYTES / 2), weight, step * TK, part, ring.barrier(slot));
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        const int group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
        const u32 mine = outs + group * OUT_BUFFERS * OUT_BYTES, arrived = ready + group * OUT_BUFFERS * 8;
        int turn = 0, buffer = 0, parities = 0;
        float sums[PARTS][SUMS];
        for (int tile = cluster; tile < tiles; tile += clusters, ++turn) {
            if (!TOGETHER && turn % 2 != group) continue;
            const int row = (row_tile(tile) * 2 + rank) * TM + TOGETHER * group * 64, column = tile % COLUMN_TILES * OUT;
#if RESIDUAL
            if (thread == 0) {
                wait_stores<0>();
                expect(arrived + 8 * buffer, OUT_BYTES);
                fetch(mine + buffer * OUT_BYTES, residual, column, row, arrived + 8 * buffer);
            }
#endif
            multiply(sums, ring, turn, tile + clusters < tiles, group, thread, [] {});

            const int line = warp * 16 + line_of(lane);
            constexpr int UNITS = CHUNK / 8;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                const u32 to = mine + buffer * OUT_BYTES;
#if RESIDUAL
                if (thread == 0 && chunk + 1 < CHUNKS) {
                    wait_stores<0>();
                    expect(arrived + 8 * (buffer ^ 1), OUT_BYTES);
                    fetch(mine + (buffer ^ 1) * OUT_BYTES, residual, column + (chunk + 1) * CHUNK, row, arrived + 8 * (buffer ^ 1));
                }
                wait(arrived + 8 * buffer, parities >> buffer & 1);
                parities ^= 1 << buffer;
#else
                if (thread == 0) wait_stores<1>();
                meet_warpgroup(1 + group);
#endif
                buffer ^= 1;
#pragma unroll
                for (int half = 0; half < PARTS; ++half) {
#pragma unroll
                    for (int j = 0; j < UNITS; j += 2) {
                        const u32 at = to + half * 64 * (CHUNK * 2) + unit_at<CHUNK>(line, j, lane);
                        u32 r[4];
#if RESIDUAL
                        load_matrices(at, r);
#endif
#pragma unroll
                        for (int i = 0; i < 2; ++i)
                            finish(sums[half], bias, chunk * UNITS + j + i, column + (chunk * UNITS + j + i) * 8 + lane % 4 * 2,
                                   r[2 * i], r[2 * i + 1]);
                        store_matrices(at, r);
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
