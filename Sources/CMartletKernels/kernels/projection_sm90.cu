// Dense projections with their adapters on Hopper: one product for up to three layers that share an input or its gradient.
//
// Math       y_s  = x W_s^T + p_s B_s^T (+ residual, of a single layer)                         -DTRANSPOSED=0
//            dx   = sum over s of dy_s W_s + sum over s of q_s A_s (+ residual)                 -DTRANSPOSED=1
//            The adapters are more of K: [x | p] [W | B]. p and q carry their scale (low_rank.cu).
// Shapes     x, dx [T, I]; y_s, dy_s [T, O_s]; W_s [O_s, I]; p_s, q_s [T, r]; A_s [r, I]; B_s [O_s, r]; all bf16. I, O_s and r
//            multiples of 8; edges of tiles are predicated, so any T is right. The residual may be the output itself.
// Budget     2 T I (sum of O_s) FLOPs; q, k, v of Qwen3-30B-A3B at T = 4096: 86 G, 0.13 ms at 650 TFLOP/s, beside which 21 + 59
//            MB are nothing. Bound by the tensor cores, and by how evenly tiles fall on the multiprocessors: a tile is 128
//            rows x TILE columns.
// Design     as in grouped_gemm_sm90.cu: one thread of the first warpgroup fills a ring of K steps by the copy engine, two
//            warpgroups multiply in turns, each a tile of its own, so that one's epilogue runs under the other's products.
// Launch     -DTRANSPOSED -DTILE (128 or 192) -DRANK; 384 threads; grid = multiprocessors; 232448 bytes of dynamic shared
//            memory. Absent layers have width 0 and any map; bit s of `adapters`: layer s has one. Tensor maps (bf16, 128-byte
//            swizzle, zero fill; sizes innermost first), for each s:
//              a      x {I, T} (dy_s {O_s, T}), box {64, 128}
//              b      W_s {I, O_s}, box {64, TILE} (TRANSPOSED {64, 64})
//              a_ext  p_s (q_s) {r, T}, box {64, 128}
//              b_ext  B_s {r, O_s}, box {64, TILE} (TRANSPOSED A_s {I, r}, box {64, 64})
// Numerics   float accumulators over K in order, whatever TILE is: reproducible. Rounded to bf16 before the residual is added.
// Reference  CPUBackend.linear, linearBackward.
#include "sm90.cuh"

constexpr int a_bytes = 128 * 64 * 2;
constexpr int b_bytes = TILE * 128;
constexpr int stage_bytes = a_bytes + b_bytes;
constexpr int stages = TILE == 128 ? 6 : 5;
/// Each of the 8 consumer warps stages 16 rows x 64 columns; 16 bytes between rows keep the banks apart.
constexpr int staging_pitch = 64 * 2 + 16;
constexpr int staging_bytes = 16 * staging_pitch;
constexpr int barriers_at = stages * stage_bytes + 8 * staging_bytes;
static_assert(barriers_at + (stages + 1) * 16 <= 232448, "the launch's dynamic shared memory");
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
    __device__ __forceinline__ int tiles() const { return ceil_div(rows, 128) * column_tiles(); }
};

/// Tile `index`: its first row and column, and the layers first ..< last that it sums over.
struct Place {
    int row, column, first, last;
    /// Steps of K of the weights, and of the adapters after them.
    int base = 0, extra = 0;

    __device__ __forceinline__ Place(const Work& work, int index) {
        const int across = work.column_tiles();
        int tile = index % across;
        row = index / across * 128;
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

/// `steps` steps of a (rows of the tile) and b from the start of their K.
__device__ __forceinline__ void fill(Ring& ring, const TensorMap& a, const TensorMap& b, const Place& place, int steps) {
    for (int step = 0; step < steps; ++step, ring.next()) {
        const int k = step * 64;
        barrier_wait(ring.empty(), ring.parity ^ 1);
        barrier_expect(ring.full(), stage_bytes);
        tensor_load(ring.a(), a, ring.full(), k, place.row);
        if (TRANSPOSED) {
#pragma unroll
            for (int i = 0; i < TILE / 64; ++i) {
                tensor_load(ring.b() + i * 8192, b, ring.full(), place.column + 64 * i, k);
            }
        } else {
            tensor_load(ring.b(), b, ring.full(), k, place.column);
        }
    }
}

__device__ __forceinline__ void produce(
    Ring ring, const Work& work, const TensorMap* const (&a)[3], const TensorMap* const (&b)[3],
    const TensorMap* const (&a_ext)[3], const TensorMap* const (&b_ext)[3]) {
    for (int index = blockIdx.x, total = work.tiles(); index < total; index += gridDim.x) {
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

#define PLACES_64                                                                                                             \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, " \
    "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PLACES_96                                                                                                             \
    PLACES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, "   \
              "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define EIGHT(i)                                                                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define OUTPUTS_64 EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)
#define OUTPUTS_96 OUTPUTS_64, EIGHT(64), EIGHT(72), EIGHT(80), EIGHT(88)
#define WGMMA(n, count, a_at, b_at, p_at, t_at)                                                                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p_at ", 0;\n"                                                          \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" PLACES_##count "}, %" #a_at ", %" #b_at         \
                 ", p, 1, 1, 0, %" #t_at ";\n}"                                                                               \
                 : OUTPUTS_##count : "l"(a), "l"(b), "r"((u32)accumulates), "n"(TRANSPOSED))

constexpr int values = TILE / 2;

/// d[64 x TILE] (+)= a[64 x 16] b[16 x TILE], in the layout that wgmma_64_192_16 (sm90.cuh) tells.
__device__ __forceinline__ void multiply_16(float (&d)[values], u64 a, u64 b, bool accumulates) {
#if TILE == 128
    WGMMA(128, 64, 64, 65, 66, 67);
#else
    WGMMA(192, 96, 96, 97, 98, 99);
#endif
}

/// Keeps the compiler from reading the accumulators before a wait.
__device__ __forceinline__ void keep(float (&d)[values]) {
#pragma unroll
    for (int i = 0; i < values; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// One step of K, `count` times 16 of it, for the first 64 rows and, if `both`, the last 64.
template <int count, bool both>
__device__ __forceinline__ void multiply_step(float (&d)[2][values], const Ring& ring, bool accumulates) {
    const u64 a = operand(ring.a()), b = TRANSPOSED ? operand(ring.b(), 8192) : operand(ring.b());
    constexpr int b_step = TRANSPOSED ? 2048 >> 4 : 32 >> 4;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < count; ++i) {
        multiply_16(d[0], a + 2 * i, b + b_step * i, accumulates || i > 0);
        if (both) multiply_16(d[1], a + (8192 >> 4) + 2 * i, b + b_step * i, accumulates || i > 0);
    }
    wgmma_commit();
}

/// All steps of one tile into the accumulators. One step stays under way while the next starts.
template <bool both>
__device__ __forceinline__ void multiply(float (&d)[2][values], Ring& ring, const Place& place, int group, int round) {
    barrier_wait(ring.turn(group), (round ^ group ^ 1) & 1);
    barrier_wait(ring.full(), ring.parity);
    multiply_step<4, both>(d, ring, false);
    u32 previous = ring.empty();
    ring.next();
    for (int step = 1; step < place.base; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        multiply_step<4, both>(d, ring, true);
        wgmma_wait<1>();
        release(previous);
        previous = ring.empty();
    }
#pragma unroll 1
    for (int step = 1; step <= place.extra; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        if (extra_steps == 1 || step % extra_steps == 0) {
            multiply_step<extra_count, both>(d, ring, true);
        } else {
            multiply_step<4, both>(d, ring, true);
        }
        wgmma_wait<1>();
        release(previous);
        previous = ring.empty();
    }
    release(ring.turn(group ^ 1));
    wgmma_wait<0>();
    keep(d[0]);
    if (both) keep(d[1]);
    release(previous);
}

// MARK: Epilogue, warp by warp, 16 rows at a time

__device__ __forceinline__ u32 sum(u32 x, u32 y) { return pack(low(x) + low(y), high(x) + high(y)); }

/// 16 rows x 64 columns of the accumulators, from column 8 `chunk` of the tile on, through the warp's staging area to
/// global memory; only `count` rows and columns below `limit` are written.
__device__ __forceinline__ void store_rows(
    const float (&d)[values], int chunk, u32 staging, bf16* to, const bf16* residual, int stride, int count, int limit) {
    const int lane = lane_id();
    const int row = lane / 8, column = lane % 8 * 8;
    const u64 at = (u64)row * stride + column;
    const int last = column < limit ? min(count, 16) : 0;
    const u32 corner = staging + lane % 16 * staging_pitch + lane / 16 * 16;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        const float* x = d + 4 * (chunk + j);
        store_matrices(corner + j * 16, pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
    }
    __syncwarp();
    // The residual's rows are on the way together, as many as there are registers for, before any is waited for.
    constexpr int at_once = TILE == 128 ? 4 : 2;
#pragma unroll
    for (int i = 0; i < 4; i += at_once) {
        Vector old[at_once] = {};
#pragma unroll
        for (int k = 0; k < at_once; ++k) {
            const int r = 4 * (i + k);
            if (residual && row + r < last) old[k] = load128_once(residual + at + (u64)r * stride);
        }
#pragma unroll
        for (int k = 0; k < at_once; ++k) {
            const int r = 4 * (i + k);
            if (row + r >= last) continue;
            Vector v = load_shared128(staging + (row + r) * staging_pitch + column * 2);
            if (residual) v = {sum(v.x, old[k].x), sum(v.y, old[k].y), sum(v.z, old[k].z), sum(v.w, old[k].w)};
            store128(to + at + (u64)r * stride, v);
        }
    }
    __syncwarp();
}

/// A warpgroup that multiplies: every other tile of the block.
__device__ __forceinline__ void consume(
    Ring ring, u32 shared, const Work& work, bf16* const (&out)[3], const bf16* residual) {
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 - 4, total = work.tiles();
    const u32 staging = shared + stages * stage_bytes + warp * staging_bytes;
    auto skip = [&](int index) {
        if (index >= total) return;
        const Place place(work, index);
        ring.advance(place.base + place.extra);
    };
    if (group == 1) skip(blockIdx.x);
    int round = 0;
    for (int index = blockIdx.x + group * gridDim.x; index < total; index += 2 * gridDim.x, ++round) {
        const Place place(work, index);
        float d[2][values];
        const int tile_rows = min(128, work.rows - place.row);
        if (tile_rows > 64) multiply<true>(d, ring, place, group, round);
        else multiply<false>(d, ring, place, group, round);
        skip(index + gridDim.x);
        const int row = place.row + warp % 4 * 16, count = tile_rows - warp % 4 * 16;
        const int stride = TRANSPOSED ? work.inner : place.first == 0 ? work.width[0] : place.first == 1 ? work.width[1] : work.width[2];
        bf16* to = TRANSPOSED || place.first == 0 ? out[0] : place.first == 1 ? out[1] : out[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (count <= 64 * half) break;
#pragma unroll
            for (int part = 0; part < TILE / 64; ++part) {
                const int column = place.column + 64 * part, left = count - 64 * half;
                const u64 at = (u64)(row + 64 * half) * stride + column;
                store_rows(d[half], 8 * part, staging, to + at, residual ? residual + at : nullptr, stride, left,
                           stride - column);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) projection(
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
            barrier_init(slot.empty(), 1);
        }
        barrier_init(ring.turn(0), 1);
        barrier_init(ring.turn(1), 1);
        barrier_init_fence();
    }
    __syncthreads();
    const Work work = {rows, inner, {width0, width1, width2}, adapters};
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (threadIdx.x > 0) return;
        produce(ring, work, {&a0, &a1, &a2}, {&b0, &b1, &b2}, {&a0_ext, &a1_ext, &a2_ext}, {&b0_ext, &b1_ext, &b2_ext});
    } else {
        register_increase<consumer_registers>();
        consume(ring, shared, work, {out0, out1, out2}, residual);
    }
}
