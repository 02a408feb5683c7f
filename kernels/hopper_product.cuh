// The products of kernels for SM90: a ring of STAGES tiles in shared memory, which one warpgroup of a block fills, and what the
// other two compute from it, tiles of 128 rows: whole ones in turn or, TOGETHER, half a tile each, which can then be wider.
//
// Constants: K features of x, TN rows of W a tile has, STAGES, TOGETHER, CLUSTER blocks that share what they fetch, SLOTS of the
// ring a tile takes (its steps, and what a kernel sends after them); mma() comes from `bei.kernels.hopper`.

constexpr int TM = 128, TK = 64, STEPS = (K + TK - 1) / TK;
constexpr int A_BYTES = TM * TK * 2, B_BYTES = TN * TK * 2, STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int PARTS = TOGETHER ? (TN + 255) / 256 : 2;        // of a warpgroup's tile: its columns, or, in turn, its halves
constexpr int COLUMNS = TOGETHER ? TN / PARTS : TN, SUMS = COLUMNS / 2;  // of a part, and its sums in a thread

struct Ring {
    u32 stages, full, empty;

    __device__ __forceinline__ void start() const {
        for (int s = 0; s < STAGES; ++s) {
            init(full + 8 * s, 1);
            init(empty + 8 * s, (TOGETHER ? 2 : 1) * CLUSTER);  // every warpgroup that read a stage says so to all blocks
        }
    }

    // Counting slots from the block's first.
    __device__ __forceinline__ u32 stage(int slot) const { return stages + slot % STAGES * STAGE_BYTES; }

    __device__ __forceinline__ void await(int slot) const { wait(full + 8 * (slot % STAGES), slot / STAGES % 2); }

    __device__ __forceinline__ void release(int slot, int thread) const {
        const int block = thread % 32 * 4 + thread / 32;
        if (block < CLUSTER) arrive(empty + 8 * (slot % STAGES), block);
    }

    // To fill: where, once it is empty. ``bytes`` will come.
    __device__ __forceinline__ u32 claim(int slot, u32 bytes) const {
        wait(empty + 8 * (slot % STAGES), slot / STAGES % 2 ^ 1);
        expect(barrier(slot), bytes);
        return stage(slot);
    }

    __device__ __forceinline__ u32 barrier(int slot) const { return full + 8 * (slot % STAGES); }
};

// A tile's sums, while the other warpgroup waits for its turn. ``turn`` counts the block's tiles; ``more``: another follows.
// ``beside`` is done while the first step is computed.
template <class Beside>
__device__ __forceinline__ void multiply(float (&sums)[PARTS][SUMS], const Ring &ring, int turn, bool more, int group, int thread,
                                         const Beside &beside) {
    if (!TOGETHER && turn > 0) meet_other(3 + group);
    int stage = turn * SLOTS % STAGES, parity = turn * SLOTS / STAGES % 2, last = 0;
#pragma unroll 1
    for (int step = 0; step < STEPS; ++step) {
        wait(ring.full + 8 * stage, parity);
        const u32 a = descriptor(ring.stages + stage * STAGE_BYTES), b = a + (A_BYTES >> 4);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < TK / 16; ++k) {
#pragma unroll
            for (int part = 0; part < PARTS; ++part)
                mma(sums[part], a + (TOGETHER ? group : part) * (A_BYTES / 2 >> 4) + 2 * k,
                    b + (TOGETHER ? part * (B_BYTES / PARTS >> 4) : 0) + 2 * k, k ? 1 : step);
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (step > 0) {
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            ring.release(last, thread);
        } else {
            beside();
        }
        last = stage;
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    if (!TOGETHER && more) call_other(3 + 1 - group);
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    ring.release(last, thread);
}

// A tile of lines of 16-bit values, swizzled as tensor maps do it, for matrix instructions of a warp: the line whose address a
// lane gives, and where ``unit`` of 16 bytes of it, or its neighbour, is.
__device__ __forceinline__ int line_of(int lane) { return lane / 8 % 2 * 8 + lane % 8; }

template <int LINE>
__device__ __forceinline__ u32 unit_at(int line, int unit, int lane) {
    const int turned = LINE == 64 ? line % 8 : line / 2 % 4;
    return line * (LINE * 2) + (((unit + lane / 16) ^ turned) << 4);
}
