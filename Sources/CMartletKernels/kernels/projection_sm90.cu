// Dense projections with their adapters on Hopper: one product for up to three layers that share an input or its gradient.
//
// Math       y_s  = x W_s^T + p_s B_s^T (+ residual, of a single layer)                         -DTRANSPOSED=0
//            dx   = sum over s of dy_s W_s + sum over s of q_s A_s (+ residual)                 -DTRANSPOSED=1
//            The adapters are more of K: [x | p] [W | B]. p and q carry their scale (low_rank.cu).
// Shapes     x, dx [T, I]; y_s, dy_s [T, O_s]; W_s [O_s, I]; p_s, q_s [T, r]; A_s [r, I]; B_s [O_s, r]; all bf16. I, O_s and r
//            multiples of 8; edges of tiles are predicated, so any T is right. The residual may be the output itself.
// Budget     2 T I (sum of O_s) FLOPs; q, k, v of Qwen3-30B-A3B at T = 4096: 86 G, 0.13 ms at 650 TFLOP/s, beside which 21 + 59
//            MB are nothing. Bound by the card's power, so by the bytes that a product takes from shared memory, and those
//            from L2; and by how evenly tiles fall on the multiprocessors: a tile is 128 rows x TILE columns.
// Design     One thread of the first warpgroup fills a ring of K steps by the copy engine, also for the next tile while the last
//            one is written; two warpgroups multiply, each 64 rows of the block's tile by all of its columns. The blocks of a
//            cluster take tiles below each other, and each fetches a part of the weights for all.
// Launch     -DTRANSPOSED -DTILE (128, 256) -DCLUSTER (1, 2) -DRANK; 384 threads; grid = multiprocessors, a multiple of CLUSTER;
//            232448 bytes of dynamic shared memory. Absent layers have width 0 and any map; bit s of `adapters`: layer s has
//            one. Tensor maps (bf16, 128-byte swizzle, zero fill; sizes innermost first), for each s:
//              a      x {I, T} (dy_s {O_s, T}), box {64, 128}
//              b      W_s {I, O_s}, box {64, TILE / CLUSTER} (TRANSPOSED {64, 64})
//              a_ext  p_s (q_s) {r, T}, box {64, 128}
//              b_ext  B_s {r, O_s}, box {64, TILE / CLUSTER} (TRANSPOSED A_s {I, r}, box {64, 64})
// Numerics   float accumulators over K in order, however it is cut: reproducible. Rounded to bf16 before the residual is added.
// Reference  CPUBackend.linear, linearBackward.
#include "wgmma.cuh"

constexpr int a_bytes = 128 * 64 * 2;
constexpr int b_bytes = TILE * 128;
constexpr int stage_bytes = a_bytes + b_bytes;
constexpr int stages = TILE == 128 ? 6 : 4;
/// Each of the 8 consumer warps stages 16 rows x 64 columns; 16 bytes between rows keep the banks apart.
constexpr int staging_pitch = 64 * 2 + 16;
constexpr int staging_bytes = 16 * staging_pitch;
constexpr int barriers_at = stages * stage_bytes + 8 * staging_bytes;
static_assert(barriers_at + stages * 16 <= 232448, "the launch's dynamic shared memory");
/// The block starts with 384 x 168 registers; the three warpgroups share them anew.
constexpr int producer_registers = 40;
constexpr int consumer_registers = 232;
/// Steps of K of one adapter, and multiples of 16 in the last of them.
constexpr int extra_steps = ceil_div(RANK, 64);
constexpr int extra_count = (RANK - 1) / 16 % 4 + 1;

/// What there is to multiply.
struct Work {
    int rows, inner, width[3], adapters;

    __device__ __forceinline__ bool adapts(int s) const { return adapters >> s & 1; }
    __device__ __forceinline__ int column_tiles() const {
        if (TRANSPOSED) return ceil_div(inner, TILE);
        return ceil_div(width[0], TILE) + ceil_div(width[1], TILE) + ceil_div(width[2], TILE);
    }
    /// Of clusters.
    __device__ __forceinline__ int tiles() const { return ceil_div(rows, 128 * CLUSTER) * column_tiles(); }
};

/// The block's part of its cluster's tile `index`: its first row and column, and the layers first ..< last that it sums over.
struct Place {
    int row, column, first, last;
    /// Steps of K of the weights, and of the adapters after them.
    int base = 0, extra = 0;

    __device__ __forceinline__ Place(const Work& work, int index) {
        const int across = work.column_tiles();
        int tile = index % across;
        row = (index / across * CLUSTER + cluster_rank<CLUSTER>()) * 128;
        first = 0, last = 3;
        if (!TRANSPOSED) {
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                const int here = ceil_div(work.width[s], TILE);
                if (first == s && tile >= here) tile -= here, first = s + 1;
            }
            last = first + 1;
        }
        column = tile * TILE;
#pragma unroll
        for (int s = 0; s < 3; ++s) {
            if (s < first || s >= last || work.width[s] == 0) continue;
            base += ceil_div(TRANSPOSED ? work.width[s] : work.inner, 64);
            if (work.adapts(s)) extra += extra_steps;
        }
    }
};

struct Ring : RingPlace<stages, stage_bytes, barriers_at> {
    using RingPlace::RingPlace;
    __device__ __forceinline__ u32 a() const { return stage(); }
    __device__ __forceinline__ u32 b() const { return a() + a_bytes; }
};

// MARK: Filling the ring

/// `steps` steps of a (rows of the tile) and b from the start of their K; every block of the cluster gets all of b.
__device__ __forceinline__ void fill(Ring& ring, const TensorMap& a, const TensorMap& b, const Place& place, int steps) {
    for (int step = 0; step < steps; ++step, ring.next()) {
        const int k = step * 64;
        barrier_wait(ring.empty(), ring.parity ^ 1);
        barrier_expect(ring.full(), stage_bytes);
        tensor_load(ring.a(), a, ring.full(), k, place.row);
        constexpr int share = TILE / CLUSTER;
        const int first = cluster_rank<CLUSTER>() * share, column = place.column + first;
        if (TRANSPOSED) {
#pragma unroll
            for (int i = 0; i < share; i += 64) {
                tensor_load_all<CLUSTER>(ring.b() + (first + i) * 128, b, ring.full(), column + i, k);
            }
        } else {
            tensor_load_all<CLUSTER>(ring.b() + first * 128, b, ring.full(), k, column);
        }
    }
}

__device__ __forceinline__ void produce(
    Ring ring, const Work& work, const TensorMap* const (&a)[3], const TensorMap* const (&b)[3],
    const TensorMap* const (&a_ext)[3], const TensorMap* const (&b_ext)[3]) {
    for (int index = blockIdx.x / CLUSTER, total = work.tiles(); index < total; index += gridDim.x / CLUSTER) {
        const Place place(work, index);
#pragma unroll
        for (int s = 0; s < 3; ++s) {
            if (s < place.first || s >= place.last) continue;
            const int k = work.width[s] == 0 ? 0 : TRANSPOSED ? work.width[s] : work.inner;
            fill(ring, *a[s], *b[s], place, ceil_div(k, 64));
        }
#pragma unroll
        for (int s = 0; s < 3; ++s) {
            if (s < place.first || s >= place.last || !work.adapts(s)) continue;
            fill(ring, *a_ext[s], *b_ext[s], place, extra_steps);
        }
    }
}

// MARK: Products

constexpr int values = TILE / 2;

/// d[64 x TILE] (+)= a[64 x 16] b[16 x TILE]
__device__ __forceinline__ void multiply_16(float (&d)[values], u64 a, u64 b, bool accumulates) {
#if TILE == 128
    wgmma_64_128_16<TRANSPOSED>(d, a, b, accumulates);
#else
    wgmma_64_256_16<TRANSPOSED>(d, a, b, accumulates);
#endif
}

/// One step of K, `count` times 16 of it, for the 64 rows of warpgroup `group`.
template <int count>
__device__ __forceinline__ void multiply_step(float (&d)[values], const Ring& ring, int group, bool accumulates) {
    const u64 a = operand(ring.a() + group * 8192), b = TRANSPOSED ? operand(ring.b(), 8192) : operand(ring.b());
    constexpr int b_step = TRANSPOSED ? 2048 >> 4 : 32 >> 4;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < count; ++i) multiply_16(d, a + 2 * i, b + b_step * i, accumulates || i > 0);
    wgmma_commit();
}

/// All steps of one tile into the accumulators. One step stays under way while the next starts; after the last, `meanwhile`.
template <class Meanwhile>
__device__ __forceinline__ void multiply(
    float (&d)[values], Ring& ring, const Place& place, int group, Meanwhile meanwhile) {
    barrier_wait(ring.full(), ring.parity);
    multiply_step<4>(d, ring, group, false);
    u32 previous = ring.empty();
    ring.next();
    auto advance = [&] {
        wgmma_wait<1>();
        release_all<CLUSTER>(previous);
        previous = ring.empty();
        ring.next();
    };
    for (int step = 1; step < place.base; ++step) {
        barrier_wait(ring.full(), ring.parity);
        multiply_step<4>(d, ring, group, true);
        advance();
    }
#pragma unroll 1
    for (int step = 1; step <= place.extra; ++step) {
        barrier_wait(ring.full(), ring.parity);
        if (extra_steps == 1 || step % extra_steps == 0) multiply_step<extra_count>(d, ring, group, true);
        else multiply_step<4>(d, ring, group, true);
        advance();
    }
    meanwhile();
    wgmma_wait<0>();
    hold<values>(d);
    release_all<CLUSTER>(previous);
}

// MARK: Epilogue, warp by warp: 16 rows x TILE columns, 64 columns at a time

__device__ __forceinline__ u32 sum(u32 x, u32 y) { return pack(low(x) + low(y), high(x) + high(y)); }
__device__ __forceinline__ Vector sum(Vector v, Vector r) {
    return {sum(v.x, r.x), sum(v.y, r.y), sum(v.z, r.z), sum(v.w, r.w)};
}

/// Where a warp's rows go: lane l has the 16 bytes from column 8 (l % 8) on of rows l / 8 + 4 i, i in 0 ..< 4, of every 64 columns.
struct Rows {
    u64 at;
    int stride, row, limit, column;

    /// Whether there are rows 4 i and columns 64 `part` of it.
    __device__ __forceinline__ bool has(int part, int i) const { return row + 4 * i < limit && column + 64 * part < stride; }
    __device__ __forceinline__ u64 place(int part, int i) const { return at + (u64)(4 * i) * stride + 64 * part; }
};

/// A warpgroup that multiplies: 64 rows of each tile of the block.
__device__ __forceinline__ void consume(
    Ring ring, u32 shared, const Work& work, bf16* const (&out)[3], const bf16* residual) {
    const int group = consumer_group(), warp = threadIdx.x / 32 - 4, total = work.tiles();
    const u32 staging = shared + stages * stage_bytes + warp * staging_bytes;
    constexpr int parts = TILE / 64;
    for (int index = blockIdx.x / CLUSTER; index < total; index += gridDim.x / CLUSTER) {
        const Place place(work, index);
        const int s = place.first, width = s == 0 ? work.width[0] : s == 1 ? work.width[1] : work.width[2];
        bf16* to = TRANSPOSED || s == 0 ? out[0] : s == 1 ? out[1] : out[2];
        float d[values];
        Vector old[parts][4] = {};
        auto rows = [&] {
            const int lane = lane_id(), row = place.row + 16 * warp + lane / 8, column = place.column + lane % 8 * 8;
            const int stride = TRANSPOSED ? work.inner : width;
            return Rows{(u64)row * stride + column, stride, row, work.rows, column};
        };
        // All that a thread needs of the residual is on the way before any is waited for.
        multiply(d, ring, place, group, [&] {
            if (!residual) return;
            const Rows from = rows();
#pragma unroll
            for (int part = 0; part < parts; ++part) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (from.has(part, i)) old[part][i] = load128_once(residual + from.place(part, i));
                }
            }
        });
        const Rows own = rows();
        const int lane = lane_id();
        const u32 corner = staging + lane % 16 * staging_pitch + lane / 16 * 16;
        const u32 line = staging + lane / 8 * staging_pitch + lane % 8 * 16;
#pragma unroll
        for (int part = 0; part < parts; ++part) {
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                const float* x = d + 32 * part + 4 * j;
                store_matrices(corner + j * 16, pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
            }
            __syncwarp();
            Vector v[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = load_shared128(line + 4 * i * staging_pitch);
            __syncwarp();
            if (residual) {
#pragma unroll
                for (int i = 0; i < 4; ++i) v[i] = sum(v[i], old[part][i]);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) store128_if(own.has(part, i), to + own.place(part, i), v[i]);
        }
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1) projection(
    const __grid_constant__ TensorMap a0, const __grid_constant__ TensorMap b0, const __grid_constant__ TensorMap a0_ext,
    const __grid_constant__ TensorMap b0_ext, const __grid_constant__ TensorMap a1, const __grid_constant__ TensorMap b1,
    const __grid_constant__ TensorMap a1_ext, const __grid_constant__ TensorMap b1_ext, const __grid_constant__ TensorMap a2,
    const __grid_constant__ TensorMap b2, const __grid_constant__ TensorMap a2_ext, const __grid_constant__ TensorMap b2_ext,
    bf16* out0, bf16* out1, bf16* out2, const bf16* residual, int rows, int inner, int width0, int width1, int width2,
    int adapters) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory);
    Ring ring(shared);
    if (threadIdx.x == 0) {
        for (Ring slot = ring; slot.parity == 0; slot.next()) {
            barrier_init(slot.full(), 1);
            barrier_init(slot.empty(), 2 * CLUSTER);
        }
        barrier_init_fence();
    }
    cluster_barrier<CLUSTER>();
    const Work work = {rows, inner, {width0, width1, width2}, adapters};
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (threadIdx.x > 0) return;
        produce(ring, work, {&a0, &a1, &a2}, {&b0, &b1, &b2}, {&a0_ext, &a1_ext, &a2_ext}, {&b0_ext, &b1_ext, &b2_ext});
    } else {
        register_increase<consumer_registers>();
        consume(ring, shared, work, {out0, out1, out2}, residual);
        // The cluster's other block may still tell this one of free slots.
        if (CLUSTER > 1) cluster_barrier<CLUSTER>();
    }
}
