// s = x Wt + b + residual, out = norm(s) scale + shift; with INNER, s = norm(x Wt + b) inner_scale + residual. The norm of a row
// needs all of it: a cluster of CLUSTER blocks computes 128 whole rows, each block TN columns and each warpgroup 64 rows, and the
// blocks send each other their part of a row's statistics through shared memory. They share the tile of x, of which each fetches
// a part for all. The residual comes through the ring, behind the tiles of x and W.
//
// Constants: N columns of out; LAYER (else the norm is by the root mean square), EPSILON, INNER; BACKWARDS: the last rows first;
// BIAS, RESIDUAL, INNER_SCALE, SCALE, SHIFT, TOTAL (s is stored): which operands there are; and those of hopper.cuh and
// hopper_product.cuh.

static_assert(CLUSTER * TN == N && TOGETHER);
constexpr int WIDTH = 64, CHUNKS = TN / WIDTH, CHUNK_BYTES = TM * WIDTH * 2, ROOM = STAGE_BYTES / CHUNK_BYTES;
constexpr int ROWS_BYTES = CLUSTER * 64 * 8;
constexpr int VECTORS = 4;  // bias, inner_scale, scale, shift, in fp32
static_assert(SLOTS == STEPS + (CHUNKS + ROOM - 1) / ROOM && TN % WIDTH == 0);

// Four sums of a thread, of columns 8 j …: two of a row and two of the row eight below.
__device__ __forceinline__ float *sums_of(float (&s)[PARTS][SUMS], int j) { return &s[j / (COLUMNS / 8)][j % (COLUMNS / 8) * 4]; }

// --- statistics of rows: a thread has a part of two of them, eight lines apart

struct Row {
    float shift, scale;  // normalised: x scale + shift
};

__device__ __forceinline__ float over_quad(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ void send(u32 to, u32 barrier, u32 block, float first, float second) {
    asm volatile(
        "{\n"
        ".reg .b32 to, barrier;\n"
        "mapa.shared::cluster.u32 to, %0, %2;\n"
        "mapa.shared::cluster.u32 barrier, %1, %2;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [to], {%3, %4}, [barrier];\n"
        "}\n" ::"r"(to),
        "r"(barrier), "r"(block), "f"(first), "f"(second)
        : "memory");
}

__device__ __forceinline__ float2 two_at(u32 address) {
    float2 two;
    asm("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(two.x), "=f"(two.y) : "r"(address));
    return two;
}

// What the warpgroup's rows have in all blocks: each sends the mean of its columns and the sum of squares around it, which
// together give those of the row without the cancellation that a difference of squares has (Chan, Golub, LeVeque 1983).
__device__ __forceinline__ void statistics(float (&s)[PARTS][SUMS], u32 parts, u32 told, int parity, u32 rank, int warp, int lane,
                                           Row (&rows)[2]) {
    float mean[2] = {}, square[2] = {};
    if (LAYER) {
#pragma unroll
        for (int j = 0; j < TN / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) mean[i / 2] += sums_of(s, j)[i];
        }
#pragma unroll
        for (int side = 0; side < 2; ++side) mean[side] = over_quad(mean[side]) / TN;
    }
#pragma unroll
    for (int j = 0; j < TN / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float away = sums_of(s, j)[i] - mean[i / 2];
            square[i / 2] = fmaf(away, away, square[i / 2]);
        }
    }
#pragma unroll
    for (int side = 0; side < 2; ++side) square[side] = over_quad(square[side]);
#if CLUSTER > 1
    const int row = warp * 16 + lane / 4;
    if (warp == 0 && lane == 0) expect(told, ROWS_BYTES);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        for (int block = lane % 4; block < CLUSTER; block += 4)
            send(parts + (rank * 64 + row + side * 8) * 8, told, block, mean[side], square[side]);
    }
    wait(told, parity);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        float means[CLUSTER];
        mean[side] = square[side] = 0;
#pragma unroll
        for (int block = 0; block < CLUSTER; ++block) {
            float part;
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                         : "=f"(means[block]), "=f"(part)
                         : "r"(parts + (block * 64 + row + side * 8) * 8)
                         : "memory");
            mean[side] += means[block] / CLUSTER;
            square[side] += part;
        }
        if (LAYER) {
#pragma unroll
            for (int block = 0; block < CLUSTER; ++block) {
                const float away = means[block] - mean[side];
                square[side] = fmaf(TN * away, away, square[side]);
            }
        }
    }
#endif
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        const float inv = rsqrtf(square[side] / N + EPSILON);
        rows[side] = {-mean[side] * inv, inv};
    }
}

// Four sums of a thread: two columns of two rows.
template <bool SCALED, bool SHIFTED>
__device__ __forceinline__ void normalise(const float *s, const Row (&rows)[2], u32 scale, u32 shift, float (&y)[4]) {
    const float2 one = {1, 1}, none = {0, 0};
    const float2 w = SCALED ? two_at(scale) : one, b = SHIFTED ? two_at(shift) : none;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float z = LAYER ? fmaf(s[i], rows[i / 2].scale, rows[i / 2].shift) : s[i] * rows[i / 2].scale;
        y[i] = fmaf(z, i % 2 ? w.y : w.x, i % 2 ? b.y : b.x);
    }
}

// A warp's 16 rows of a chunk to memory.
__device__ __forceinline__ void store_of_warp(const TensorMap &map, u32 from, int column, int row, int lane) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (lane == 0) store(map, from, column, row);
}

// --- the kernel

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)
    linear_norm(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
#if BIAS
                const void *bias,
#endif
#if RESIDUAL
                const __grid_constant__ TensorMap residual,
#endif
#if INNER_SCALE
                const float *inner_scale,
#endif
#if SCALE
                const float *scale,
#endif
#if SHIFT
                const float *shift,
#endif
#if TOTAL
                const __grid_constant__ TensorMap total,
#endif
                const __grid_constant__ TensorMap out, int rows) {
    extern __shared__ unsigned char memory[];
    const u32 stages = ((u32)__cvta_generic_to_shared(memory) + 1023) & ~1023u;
    const u32 vectors = stages + STAGES * STAGE_BYTES, parts = vectors + VECTORS * TN * 4;
    const u32 barriers = parts + 4 * ROWS_BYTES, told = barriers + 16 * STAGES;
    const Ring ring = {stages, barriers, barriers + 8 * STAGES};
    const u32 rank = rank_in_cluster();
    const int cluster = blockIdx.y, clusters = gridDim.y, tiles = (rows + TM - 1) / TM;
    const int first = rank * TN;
    const auto row_of = [&](int tile) { return (BACKWARDS ? tiles - 1 - tile : tile) * TM; };

    if (threadIdx.x == 0) {
        ring.start();
        for (int b = 0; b < 4; ++b) init(told + 8 * b, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        prefetch(x), prefetch(weight);
    }
    for (int c = threadIdx.x; c < TN; c += 384) {
        float *const at = (float *)(memory + (vectors - (u32)__cvta_generic_to_shared(memory))) + c;
#if BIAS
        at[0] = low(((const u16 *)bias)[first + c]);
#endif
#if INNER_SCALE
        at[TN] = inner_scale[first + c];
#endif
#if SCALE
        at[2 * TN] = scale[first + c];
#endif
#if SHIFT
        at[3 * TN] = shift[first + c];
#endif
    }
    meet_cluster();

    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0) {
            int slot = 0;
            for (int tile = cluster; tile < tiles; tile += clusters) {
                const int row = row_of(tile);
#pragma unroll 1
                for (int step = 0; step < STEPS; ++step, ++slot) {
                    const u32 to = ring.claim(slot, STAGE_BYTES), barrier = ring.barrier(slot);
                    for (int part = 0; part < PARTS; ++part)
                        fetch(to + A_BYTES + part * (B_BYTES / PARTS), weight, step * TK, first + part * COLUMNS, barrier);
                    fetch_for_all<CLUSTER>(to + rank * (A_BYTES / CLUSTER), x, step * TK, row + rank * (TM / CLUSTER), barrier);
                }
                for (int chunk = 0; chunk < CHUNKS; chunk += ROOM, ++slot) {
#if RESIDUAL
                    const int some = min(ROOM, CHUNKS - chunk);
                    const u32 to = ring.claim(slot, some * CHUNK_BYTES);
                    for (int i = 0; i < some; ++i)
                        fetch(to + i * CHUNK_BYTES, residual, first + (chunk + i) * WIDTH, row, ring.barrier(slot));
#else
                    ring.claim(slot, 0);
#endif
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        const int group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
        const int line = line_of(lane), above = 64 * group + 16 * warp;  // the warp's rows in the tile
        const u32 vector = vectors + lane % 4 * 8;
        int turn = 0, exchanges = 0;
        float sums[PARTS][SUMS];
        // Results lie where the residual lay, until they are in memory.
        const auto place = [&](int turn, int chunk) {
            return ring.stage(turn * SLOTS + STEPS + chunk / ROOM) + chunk % ROOM * CHUNK_BYTES + above * (WIDTH * 2);
        };
        for (int tile = cluster; tile < tiles; tile += clusters, ++turn) {
            const int row = row_of(tile) + above;
            multiply(sums, ring, turn, true, group, thread, [&] {
                if (turn == 0) return;
                if (lane == 0) wait_stores<0>();
                meet_warpgroup(1 + group);
                for (int slot = turn * SLOTS - (SLOTS - STEPS); slot < turn * SLOTS; ++slot) ring.release(slot, thread);
            });

            Row found[2];
            const auto exchange = [&] {
                const int region = 2 * group + exchanges % 2;
                statistics(sums, parts + region * ROWS_BYTES, told + 8 * region, exchanges / 2 % 2, rank, warp, lane, found);
                ++exchanges;
            };
#if BIAS
#pragma unroll
            for (int j = 0; j < TN / 8; ++j) {
                const float2 b = two_at(vector + 32 * j);
                float *const s = sums_of(sums, j);
                s[0] += b.x, s[1] += b.y, s[2] += b.x, s[3] += b.y;
            }
#endif
#if INNER
            exchange();
#pragma unroll
            for (int j = 0; j < TN / 8; ++j) {
                        float *const s = sums_of(sums, j);
                float y[4];
                normalise<INNER_SCALE, false>(s, found, vector + (TN * 4) + 32 * j, 0, y);
#pragma unroll
                for (int i = 0; i < 4; ++i) s[i] = y[i];
            }
#endif
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                if (chunk % ROOM == 0) ring.await(turn * SLOTS + STEPS + chunk / ROOM);
                const u32 here = place(turn, chunk);
#if RESIDUAL || TOTAL
#pragma unroll
                for (int j = 0; j < WIDTH / 8; j += 2) {
                    float *const s = sums_of(sums, chunk * (WIDTH / 8) + j);  // and its neighbour, of the same part
                    u32 r[4];
#if RESIDUAL
                    load_matrices(here + unit_at<WIDTH>(line, j, lane), r);
#pragma unroll
                    for (int i = 0; i < 4; ++i) s[2 * i] += low(r[i]), s[2 * i + 1] += high(r[i]);
#endif
#if TOTAL
#pragma unroll
                    for (int i = 0; i < 4; ++i) r[i] = pair_of(s[2 * i], s[2 * i + 1]);
                    store_matrices(here + unit_at<WIDTH>(line, j, lane), r);
#endif
                }
#if TOTAL
                store_of_warp(total, here, first + chunk * WIDTH, row, lane);
#endif
#endif
            }
            exchange();
#if TOTAL
            if (lane == 0) wait_stores<0>();
            __syncwarp();
#endif
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                const u32 at = vector + chunk * WIDTH * 4, here = place(turn, chunk);
#pragma unroll
                for (int j = 0; j < WIDTH / 8; j += 2) {
                    const float *const s = sums_of(sums, chunk * (WIDTH / 8) + j);
                    u32 r[4];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float y[4];
                        normalise<SCALE, SHIFT>(s + 4 * i, found, at + 2 * (TN * 4) + 32 * (j + i), at + 3 * (TN * 4) + 32 * (j + i), y);
                        r[2 * i] = pair_of(y[0], y[1]);
                        r[2 * i + 1] = pair_of(y[2], y[3]);
                    }
                    store_matrices(here + unit_at<WIDTH>(line, j, lane), r);
                }
                store_of_warp(out, here, first + chunk * WIDTH, row, lane);
            }
        }
        if (lane == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    meet_cluster();  // a block may not end while another still sends to it
}
