// Both of what an adapter's B makes in the backward pass on Hopper, from one reading of dy: its skinny product and its gradient.
//
// Math       q_RA[row] = s dy[row] B_e;  dB_e (+)= sum over rows of e of dy[row]^T p[row]
// Shapes     dy bf16 [R, C], C a multiple of 512; B bf16 [E, C, 16]; p, q bf16 [R, 16]; dB float [E, C, 16].
// Budget     4 R 16 C FLOPs; bytes 2 R C + 6 E 16 C, and as many again as dB has where it `adds`. Bound by bytes.
// Design     A cluster of eight blocks has an expert, a block an eighth of the columns. It walks the expert's rows in pieces of 64,
//            which the copy engine brings; wgmma reads each piece twice where it stands, once with K along the columns (q) and once
//            along the rows (dB, which stays in accumulators to the end). The blocks' shares of q are sent into each other's shared
//            memory, and added there while the next piece is multiplied.
// Launch     -DWIDTH=C; <<<8 E, 128>>>, 36 C + 12328 bytes of dynamic shared memory. Tensor maps, innermost first:
//              dy {C, R}, box {64, 32}; B {16, C, E}, box {16, 64, 1} in the 32-byte swizzle
// Numerics   q: a block's columns in order, then the blocks in order; dB: rows in order: reproducible. Without `adds` what stands in
//            dB is not read: 0 + sum is written, and zeros for an expert without rows.
// Reference  CPUBackend.expertsBackward (q1, the gradient of gateUp's B).
#include "wgmma.cuh"

/// Blocks of a cluster; pieces in a block's shared memory. (Four blocks, or three or four pieces, leave fewer blocks a multiprocessor:
/// 3 to 10 % slower.)
constexpr int parts = 8;
constexpr int stages = 2;
/// Groups of 64 columns of a block, and the rows of a box.
constexpr int groups = WIDTH / (64 * parts);
constexpr int box_rows = 32;
static_assert(WIDTH % (64 * parts) == 0, "a block's columns are groups of 64");

constexpr int group_bytes = 64 * 128;
constexpr int p_at = groups * group_bytes;
constexpr int stage_bytes = p_at + 64 * 32;
constexpr int b_at = stages * stage_bytes;
/// Of a piece's q a block finishes so many rows, for which all blocks send it their shares: of two pieces in turns.
constexpr int own_rows = 64 / parts;
constexpr int share_bytes = parts * own_rows * 16 * 4;
constexpr int shares_at = b_at + groups * 64 * 32;
constexpr int barriers_at = shares_at + 2 * share_bytes;
static_assert(barriers_at + (stages + 3) * 8 == 36 * WIDTH + 12328, "the launch's dynamic shared memory");

// MARK: The cluster

struct Pair {
    float x, y;
};
/// Two floats to another block's shared memory, in the background; they count for a barrier of that block. (A cluster's barrier
/// each piece instead took 2 us: to release its writes a thread waits for all it ever wrote.)
__device__ __forceinline__ void send(u32 to, u32 barrier, Pair v) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];"
                 ::"r"(to), "f"(v.x), "f"(v.y), "r"(barrier) : "memory");
}

// MARK: An expert

/// The expert's rows start ..< start + count, and the block's columns.
struct Block {
    u32 shared;
    int expert, part, column, start, count;

    __device__ __forceinline__ u32 slot(int piece) const { return shared + piece % stages * stage_bytes; }
    __device__ __forceinline__ u32 full(int piece) const { return shared + barriers_at + 8 * (piece % stages); }
    __device__ __forceinline__ u32 b_full() const { return shared + barriers_at + 8 * stages; }
    __device__ __forceinline__ u32 shares(int piece) const { return shared + shares_at + piece % 2 * share_bytes; }
    __device__ __forceinline__ u32 shares_full(int piece) const { return b_full() + 8 + piece % 2 * 8; }
    __device__ __forceinline__ int pieces() const { return ceil_div(count, 64); }
};

/// Starts to bring a piece: dy by the copy engine, p by all threads with zeros for rows past the end.
__device__ __forceinline__ void fetch(const Block& at, int piece, const TensorMap& dy, const bf16* p_RA) {
    const int row = at.start + 64 * piece, left = at.count - 64 * piece;
    if (left <= 0) return;
    const u32 slot = at.slot(piece), full = at.full(piece);
    if (threadIdx.x < 32) {
        const int total = min(64 / box_rows, ceil_div(left, box_rows)) * groups;
        if (threadIdx.x == 0) barrier_expect(full, total * box_rows * 128);
        __syncwarp();
        for (int i = threadIdx.x; i < total; i += 32) {
            const int group = i % groups, first = i / groups * box_rows;
            tensor_load(slot + group * group_bytes + first * 128, dy, full, at.column + 64 * group, row + first);
        }
    }
    const int r = threadIdx.x / 2, chunk = threadIdx.x % 2;
    const u64 from = r < left ? (u64)(row + r) * 16 + chunk * 8 : 0;
    copy_async(slot + p_at + r * 32 + ((chunk ^ r / 4 % 2) << 4), p_RA + from, r < left);
    copy_async_arrive(full);
}

/// Barriers, the block's rows of B, and the first pieces.
__device__ __forceinline__ void begin(const Block& at, const TensorMap& dy, const TensorMap& b, const bf16* p_RA) {
    // Rows of an incomplete piece that nobody fetches are finite: then p's zeros leave nothing of them.
    if (at.pieces() <= stages) {
        for (int i = threadIdx.x * 16; i < p_at; i += 128 * 16) store_shared128(at.slot(at.pieces() - 1) + i, Vector{0, 0, 0, 0});
        fence_async_proxy();
    }
    if (threadIdx.x == 0) {
        // All threads' copies of p, and what announces those of dy.
        for (int i = 0; i < stages; ++i) barrier_init(at.full(i), 129);
        barrier_init(at.b_full(), 1);
        for (int i = 0; i < 2; ++i) barrier_init(at.shares_full(i), 1);
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_expect(at.b_full(), groups * 64 * 32);
        for (int i = 0; i < groups; ++i) {
            tensor_load(at.shared + b_at + i * 64 * 32, b, at.b_full(), 0, at.column + 64 * i, at.expert);
        }
        for (int i = 0; i < 2; ++i) barrier_expect(at.shares_full(i), share_bytes);
    }
    for (int i = 0; i < stages; ++i) fetch(at, i, dy, p_RA);
    // The others have made their barriers.
    cluster_barrier<parts>();
}

/// q = the piece's 64 rows by the block's rows of B; d += its columns by p.
__device__ __forceinline__ void multiply(float (&q)[8], float (&d)[groups][8], const Block& at, int piece) {
    barrier_wait(at.full(piece), piece / stages & 1);
    fence_async_proxy();
    const u64 rows = operand(at.slot(piece)), p = operand_16(at.slot(piece) + p_at), b = operand_16(at.shared + b_at);
    wgmma_fence();
#pragma unroll
    for (int g = 0; g < groups; ++g) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const u64 group = rows + (group_bytes >> 4) * g;
            wgmma_64_16_16<false>(q, group + (32 >> 4) * k, b + (512 >> 4) * (4 * g + k), g + k > 0);
            wgmma_64_16_16<true>(d[g], group + (2048 >> 4) * k, p + (512 >> 4) * k, true);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold<8>(q);
#pragma unroll
    for (int g = 0; g < groups; ++g) hold<8>(d[g]);
}

/// The block's share of a piece's q, to the blocks that its rows fall to.
__device__ __forceinline__ void share(const float (&q)[8], const Block& at, int piece) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = 16 * warp + lane / 4 + 8 * half, to = row / own_rows;
        const u32 own = at.shares(piece) + ((at.part * own_rows + row % own_rows) * 8 + lane % 4) * 8;
        const u32 place = place_in(own, to), barrier = place_in(at.shares_full(piece), to);
        send(place, barrier, Pair{q[2 * half], q[2 * half + 1]});
        send(place + 32, barrier, Pair{q[4 + 2 * half], q[5 + 2 * half]});
    }
}

/// The sum of all shares, of as many rows as fall to this block: two columns a thread.
__device__ __forceinline__ void finish(const Block& at, int piece, float scale, bf16* q_RA) {
    barrier_wait(at.shares_full(piece), piece / 2 & 1);
    if (threadIdx.x == 0) barrier_expect(at.shares_full(piece), share_bytes);
    const int row = 64 * piece + at.part * own_rows + threadIdx.x / 8, pair = threadIdx.x % 8;
    if ((int)threadIdx.x >= own_rows * 8 || row >= at.count) return;
    const Pair* shares = (const Pair*)__cvta_shared_to_generic(at.shares(piece)) + threadIdx.x;
    Pair sum = {0, 0};
#pragma unroll
    for (int i = 0; i < parts; ++i) {
        const Pair v = shares[i * own_rows * 8];
        sum.x += v.x, sum.y += v.y;
    }
    ((u32*)q_RA)[(u64)(at.start + row) * 8 + pair] = pack(scale * sum.x, scale * sum.y);
}

extern "C" __global__ void __cluster_dims__(parts, 1, 1) __launch_bounds__(128) lora_backward(
    const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap b, const bf16* p_RA, const int* offset_E1, float scale,
    bf16* q_RA, float* gradient, int adds) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    const int expert = blockIdx.x / parts, part = blockIdx.x % parts, start = offset_E1[expert];
    const Block at = {shared_address(memory), expert, part, part * groups * 64, start, offset_E1[expert + 1] - start};
    const int pieces = at.pieces();
    if (pieces == 0 && adds) return;
    float q[8], d[groups][8] = {};
    if (pieces > 0) {
        begin(at, dy, b, p_RA);
        barrier_wait(at.b_full(), 0);
    }
    for (int i = 0; i < pieces; ++i) {
        multiply(q, d, at, i);
        if (i > 0) finish(at, i - 1, scale, q_RA);
        // The slot is free, and so are the shares before the last: what others send next tells that they have this block's last ones.
        __syncthreads();
        fetch(at, i + stages, dy, p_RA);
        share(q, at, i);
    }
    if (pieces > 0) finish(at, pieces - 1, scale, q_RA);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Pair* out = (Pair*)(gradient + ((u64)expert * WIDTH + at.column + 16 * warp + lane / 4) * 16) + lane % 4;
    const auto each = [&](auto use) {
#pragma unroll
        for (int g = 0; g < groups; ++g) {
#pragma unroll
            for (int i = 0; i < 4; ++i) use(out[(64 * g + i % 2 * 8) * 8 + i / 2 * 4], d[g][2 * i], d[g][2 * i + 1]);
        }
    };
    // All loads are under way before the first store.
    if (adds) each([](const Pair& before, float& x, float& y) { x += before.x, y += before.y; });
    each([](Pair& place, float& x, float& y) { place = Pair{0.0f + x, 0.0f + y}; });
}
