// The four grouped GEMMs of a layer's experts on Hopper, one kernel specialised by MODE.
//
// Math       UP    gateUp_RF = x[token] Wgu^T + p1 B1^T,  act = silu(gate) * up
//            DOWN  out_RH   = act Wd^T + p2 B2^T
//            DACT  dact_RF  = dy[token] Wd + q2 A2; dgateUp_RF = weight * dSwiGLU(gateUp, dact), act again,
//                  partial[n][r] = <act, dact> over the columns of tile n (their sum is the routing weight's gradient)
//            DX    dx_RH    = dgateUp Wgu + q1 A1
//            The adapter is one more step of K: [x | p] [W | B]. p1, p2, q1, q2 [R, r] carry its scale (lora_project.cu).
// Shapes     rows in the order of `order_R`; Wgu [E, 2F, H] (gate rows first) and Wd [E, H, F] as in checkpoints; A [E, r, I],
//            B [E, O, r]. F and H multiples of 8, r of 8; edges of tiles are predicated, so any counts of rows are right.
// Budget     UP and DX 4 R F H FLOPs, DOWN and DACT 2 R F H (+ 2 R r (I + O)). Bytes: the weights of experts that have rows
//            once (while an expert's tiles are together in L2), inputs once, outputs once.
// Launch     -DMODE -DHIDDEN -DINNER -DTOP_K -DRANK (0: no adapter); 384 threads; grid = multiprocessors; 229440 bytes of
//            dynamic shared memory. Persistent: block b takes tiles b, b + grid, ...; the count of tiles is read on the
//            device. Tensor maps (bf16, 128-byte swizzle, zero fill; sizes innermost first):
//              a        DOWN act {F, R}, DX dgateUp {2F, R}, box {64, 128}; UP and DACT gather rows themselves
//              b        UP Wgu {H, 2F, E}, DOWN Wd {F, H, E}, box {64, 128, 1};
//                       DACT Wd {F, H, E}, DX Wgu {H, 2F, E}, box {64, 64, 1}
//              a_ext    p or q {r, R}, box {64, 128}
//              b_ext    UP B1 {r, 2F, E}, DOWN B2 {r, H, E}, box {64, 128, 1}; DACT A2 {F, r, E}, DX A1 {H, r, E}, box {64, 64, 1}
//              gate_up  DACT gateUp {2F, R}, box {64, 128}
// Numerics   bf16 operands, float accumulators over K in order: reproducible. act is made from the rounded gate and up, so
//            the backward pass makes the same bytes again. dgateUp may overwrite gateUp.
// Reference  CPUBackend.experts / expertsBackward; Guo et al. 2025, SonicMoE (gather in the loads, dSwiGLU in the epilogue).
#include "sm90.cuh"

#define UP 0
#define DOWN 1
#define DACT 2
#define DX 3

constexpr bool gathers = MODE == UP || MODE == DACT;
constexpr bool b_transposed = MODE == DACT || MODE == DX;
constexpr int k_size = MODE == UP || MODE == DACT ? HIDDEN : MODE == DOWN ? INNER : 2 * INNER;
constexpr int columns = MODE == UP || MODE == DACT ? INNER : HIDDEN;
/// Output columns of a tile; UP has the gate and the up column of each.
constexpr int tile_columns = MODE == UP ? 128 : 256;
constexpr int column_tiles = ceil_div(columns, tile_columns);
constexpr int base_steps = ceil_div(k_size, 64);
constexpr int steps = base_steps + ceil_div(RANK, 64);
/// DACT fetches gate and up, 64 columns a step, through the same ring.
constexpr int epilogue_steps = MODE == DACT ? 4 : 0;

constexpr int a_bytes = 128 * 64 * 2;
constexpr int b_bytes = 256 * 64 * 2;
constexpr int stage_bytes = a_bytes + b_bytes;
constexpr int stages = 4;
/// 16 rows x 128 columns for each of the 8 consumer warps.
constexpr int staging_bytes = 8 * 4096;
constexpr int barrier_bytes = 2 * 8 * stages;
/// The host asks for this much dynamic shared memory.
static_assert(stages * stage_bytes + staging_bytes + barrier_bytes == 229440, "the launch's shared_bytes");
/// Steps whose gathered rows may be under way before the oldest is announced; less than `stages`.
#ifndef LAG
#define LAG 1
#endif
/// The block starts with 384 x 168 registers; the three warpgroups share them anew. More than that would never be granted.
constexpr int producer_registers = gathers ? 72 : 40;
constexpr int consumer_registers = gathers ? 216 : 232;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");

/// Where the ring stands: the slot and the parity of its next full phase.
struct Ring {
    u32 base;
    int slot = 0;
    u32 parity = 0;

    __device__ __forceinline__ explicit Ring(u32 base) : base(base) {}
    __device__ __forceinline__ u32 a() const { return base + slot * stage_bytes; }
    __device__ __forceinline__ u32 b() const { return a() + a_bytes; }
    __device__ __forceinline__ u32 full() const { return base + stages * stage_bytes + staging_bytes + 16 * slot; }
    __device__ __forceinline__ u32 empty() const { return full() + 8; }
    __device__ __forceinline__ void next() {
        if (++slot == stages) slot = 0, parity ^= 1;
    }
};

/// One step's share of the weights (or of the adapter's second matrix), for 256 columns.
__device__ __forceinline__ void load_b(
    const Ring& ring, const TensorMap& map, int k, int column, int expert) {
    if (!b_transposed) {
        tensor_load(ring.b(), map, ring.full(), k, column, expert);
        tensor_load(ring.b() + b_bytes / 2, map, ring.full(), k, MODE == UP ? INNER + column : column + 128, expert);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            tensor_load(ring.b() + i * 8192, map, ring.full(), column + 64 * i, k, expert);
        }
    }
}

/// The warpgroup that fills the ring. With a gather its 128 threads copy the rows of A and thread 0 starts the tensor
/// copies; else thread 0 does everything and the others have left.
__device__ __forceinline__ void produce(
    Ring ring, const TensorMap& a, const TensorMap& b, const TensorMap& a_ext, const TensorMap& b_ext,
    const TensorMap& gate_up, const bf16* source, const int* order, const Tile* tiles, int total) {
    const int thread = threadIdx.x;
    // Thread i copies 16-byte chunk i % 8 of rows i / 8 + 16 j.
    const int chunk = thread % 8, first_row = thread / 8;
    const u32 swizzled = first_row * 128 + ((chunk ^ (first_row % 8)) << 4);
    Ring announced = ring;
    int pending = 0;

    for (int index = blockIdx.x; index < total; index += gridDim.x) {
        const Tile tile = tiles[index / column_tiles];
        const int column = index % column_tiles * tile_columns;
        const bf16* rows[8];
        if (gathers) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const int row = first_row + 16 * j;
                rows[j] = row < tile.count ? source + (u64)(order[tile.row + row] / TOP_K) * HIDDEN + chunk * 8 : nullptr;
            }
        }
        for (int step = 0; step < steps + epilogue_steps; ++step, ring.next()) {
            barrier_wait(ring.empty(), ring.parity ^ 1);
            const int k = step * 64, k_ext = (step - base_steps) * 64;
            if (thread == 0) {
                if (step < base_steps) {
                    barrier_expect(ring.full(), gathers ? b_bytes : stage_bytes);
                    if (!gathers) tensor_load(ring.a(), a, ring.full(), k, tile.row);
                    load_b(ring, b, k, column, tile.expert);
                } else if (step < steps) {
                    barrier_expect(ring.full(), stage_bytes);
                    tensor_load(ring.a(), a_ext, ring.full(), k_ext, tile.row);
                    load_b(ring, b_ext, k_ext, column, tile.expert);
                } else {
                    const int at = column + 64 * (step - steps);
                    barrier_expect(ring.full(), 2 * a_bytes);
                    tensor_load(ring.a(), gate_up, ring.full(), at, tile.row);
                    tensor_load(ring.b(), gate_up, ring.full(), INNER + at, tile.row);
                }
            }
            if (!gathers) continue;
            if (step < base_steps) {
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    if (rows[j]) copy_async(ring.a() + swizzled + j * 2048, rows[j] + k, k + chunk * 8 < k_size);
                }
            }
            copy_async_commit();
            if (++pending > LAG) {
                copy_async_wait<LAG>();
                fence_async_proxy();
                __syncwarp();
                if (thread % 32 == 0) barrier_arrive(announced.full());
                announced.next();
                --pending;
            }
        }
    }
    if (!gathers) return;
    copy_async_wait<0>();
    fence_async_proxy();
    __syncwarp();
    for (; pending > 0; --pending, announced.next()) {
        if (thread % 32 == 0) barrier_arrive(announced.full());
    }
}

/// A slot is released by each warpgroup, in DACT by each warp: its epilogue reads slots warp by warp.
constexpr int releases = MODE == DACT ? 8 : 2;
__device__ __forceinline__ void release(u32 empty) {
    if (threadIdx.x % (256 / releases) == 0) barrier_arrive(empty);
}

/// One step of K, `count` times 16 of it.
template <int count>
__device__ __forceinline__ void multiply_step(float (&d)[128], const Ring& ring, int group, bool accumulates) {
    const u64 a = operand(ring.a() + group * (a_bytes / 2));
    const u64 b = b_transposed ? operand(ring.b(), 8192) : operand(ring.b());
    constexpr int b_step = b_transposed ? 2048 >> 4 : 32 >> 4;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < count; ++i) {
        wgmma_64_256_16<b_transposed>(d, a + 2 * i, b + b_step * i, accumulates || i > 0);
    }
    wgmma_commit();
}

/// All steps of one tile into the accumulators of one warpgroup (64 rows). One step stays under way while the next starts.
__device__ __forceinline__ void multiply(float (&d)[128], Ring& ring, int group) {
    barrier_wait(ring.full(), ring.parity);
    multiply_step<4>(d, ring, group, false);
    u32 previous = ring.empty();
    ring.next();
    for (int step = 1; step < base_steps; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        multiply_step<4>(d, ring, group, true);
        wgmma_wait<1>();
        release(previous);
        previous = ring.empty();
    }
#pragma unroll
    for (int step = base_steps; step < steps; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        if (step < steps - 1) {
            multiply_step<4>(d, ring, group, true);
        } else {
            multiply_step<(RANK - 1) / 16 % 4 + 1>(d, ring, group, true);
        }
        wgmma_wait<1>();
        release(previous);
        previous = ring.empty();
    }
    wgmma_wait<0>();
    hold(d);
    release(previous);
}

/// What a warpgroup does with a tile none of whose rows are its own.
__device__ __forceinline__ void skip(Ring& ring) {
    for (int step = 0; step < steps + epilogue_steps; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        release(ring.empty());
    }
}

/// One warp's 16 rows x 128 columns, given as the accumulator's pairs, to global memory by way of its staging area.
/// `pair(j, half)` is columns 8 j + 2 (lane % 4) (+ 1) of row lane / 4 + 8 half. Rows of `to` are `stride` apart; columns
/// 64 ... stand `jump` elements further on. Only `row_count` rows and the columns below `limit` are written.
template <class Pair>
__device__ __forceinline__ void store_rows(
    u32 staging, bf16* to, u64 stride, int jump, int row_count, int limit, Pair pair) {
    const int lane = threadIdx.x % 32;
    const int row = lane % 8 + (lane / 8 % 2) * 8;
#pragma unroll
    for (int j = 0; j < 16; j += 2) {
        const u32 address = staging + row * 256 + (((j + lane / 16) ^ (row % 8)) << 4);
        store_matrices(address, pair(j, 0), pair(j, 1), pair(j + 1, 0), pair(j + 1, 1));
    }
    __syncwarp();
    const int chunk = lane % 16;
    const int column = jump ? chunk % 8 * 8 : chunk * 8;
    bf16* target = to + column + (jump && chunk >= 8 ? jump : 0);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int r = 2 * i + lane / 16;
        const Vector v = load_shared128(staging + r * 256 + ((chunk ^ (r % 8)) << 4));
        if (r < row_count && column < limit) store128(target + r * stride, v);
    }
    __syncwarp();
}

/// gate and up stand in the same thread: columns j of the gate are d[4 j ...], of up d[64 + 4 j ...].
__device__ __forceinline__ void finish_up(
    const float (&d)[128], u32 staging, int row, int count, int column, bf16* gate_up, bf16* act) {
    bf16* to = gate_up + (u64)row * 2 * INNER + column;
    const int limit = INNER - column;
    store_rows(staging, to, 2 * INNER, 0, count, limit,
               [&](int j, int half) { return pack(d[4 * j + 2 * half], d[4 * j + 2 * half + 1]); });
    store_rows(staging, to + INNER, 2 * INNER, 0, count, limit,
               [&](int j, int half) { return pack(d[64 + 4 * j + 2 * half], d[64 + 4 * j + 2 * half + 1]); });
    if (!act) return;
    store_rows(staging, act + (u64)row * INNER + column, INNER, 0, count, limit, [&](int j, int half) {
        const u32 gate = pack(d[4 * j + 2 * half], d[4 * j + 2 * half + 1]);
        const u32 up = pack(d[64 + 4 * j + 2 * half], d[64 + 4 * j + 2 * half + 1]);
        return pack(low(gate) * sigmoid(low(gate)) * low(up), high(gate) * sigmoid(high(gate)) * high(up));
    });
}

__device__ __forceinline__ void finish_rows(
    const float (&d)[128], u32 staging, int row, int count, int column, bf16* out) {
#pragma unroll
    for (int half_tile = 0; half_tile < 2; ++half_tile) {
        const int first = column + 128 * half_tile;
        store_rows(staging, out + (u64)row * HIDDEN + first, HIDDEN, 0, count, HIDDEN - first, [&](int j, int half) {
            const int i = 64 * half_tile + 4 * j + 2 * half;
            return pack(d[i], d[i + 1]);
        });
    }
}

/// d holds dact; gate and up come through the ring, 64 columns a step.
__device__ __forceinline__ void finish_dact(
    const float (&d)[128], Ring& ring, u32 staging, int warp, int row, int count, int column, const float (&weight)[2],
    bf16* dgate_up, bf16* act, float* partial) {
    const int lane = threadIdx.x % 32;
    float sum[2] = {0, 0};
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter, ring.next()) {
        const int first = column + 64 * quarter;
        u32 dgate[8][2], dup[8][2], unit[8][2];
        barrier_wait(ring.full(), ring.parity);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 at = (warp * 16 + lane / 4 + 8 * half) * 128 + ((j ^ (lane / 4)) << 4) + 4 * (lane % 4);
                const u32 gates = load_shared32(ring.a() + at), ups = load_shared32(ring.b() + at);
                float a[2], dg[2], du[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float gate = e ? high(gates) : low(gates), up = e ? high(ups) : low(ups);
                    const float gradient = d[32 * quarter + 4 * j + 2 * half + e], s = sigmoid(gate);
                    a[e] = gate * s * up;
                    sum[half] += first + 8 * j < INNER ? a[e] * gradient : 0.0f;
                    dg[e] = weight[half] * gradient * up * s * (1 + gate * (1 - s));
                    du[e] = weight[half] * gradient * gate * s;
                }
                dgate[j][half] = pack(dg[0], dg[1]);
                dup[j][half] = pack(du[0], du[1]);
                unit[j][half] = pack(a[0], a[1]);
            }
        }
        __syncwarp();
        release(ring.empty());
        store_rows(staging, dgate_up + (u64)row * 2 * INNER + first, 2 * INNER, INNER, count, INNER - first,
                   [&](int j, int half) { return j < 8 ? dgate[j % 8][half] : dup[j % 8][half]; });
        if (act) {
            // Only 64 columns: the second half of the staging area repeats the first, past the limit.
            store_rows(staging, act + (u64)row * INNER + first, INNER, 0, count, min(64, INNER - first),
                       [&](int j, int half) { return unit[j % 8][half]; });
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(sum[half]);
        const int r = lane / 4 + 8 * half;
        if (lane % 4 == 0 && r < count) partial[row + r] = total;
    }
}

/// The two warpgroups that multiply; each owns 64 rows of every tile.
__device__ __forceinline__ void consume(
    Ring ring, u32 shared, const int* order, const Tile* tiles, int total, const float* weights, bf16* out, bf16* act,
    float* partial, int row_total) {
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32;
    const u32 staging = shared + stages * stage_bytes + warp * 4096;
    for (int index = blockIdx.x; index < total; index += gridDim.x) {
        const Tile tile = tiles[index / column_tiles];
        const int column = index % column_tiles * tile_columns;
        const int row = tile.row + warp * 16, count = tile.count - warp * 16;
        float weight[2] = {0, 0};
        if (MODE == DACT) {
            if (lane / 4 < count) weight[0] = weights[order[row + lane / 4]];
            if (lane / 4 + 8 < count) weight[1] = weights[order[row + lane / 4 + 8]];
        }
        if (tile.count <= group * 64) {
            skip(ring);
            continue;
        }
        float d[128];
        multiply(d, ring, group);
        if (MODE == UP) finish_up(d, staging, row, count, column, out, act);
        if (MODE == DOWN || MODE == DX) finish_rows(d, staging, row, count, column, out);
        if (MODE == DACT) {
            finish_dact(d, ring, staging, warp, row, count, column, weight, out, act,
                        partial + (u64)(index % column_tiles) * row_total);
        }
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) grouped_gemm(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap a_ext,
    const __grid_constant__ TensorMap b_ext, const __grid_constant__ TensorMap gate_up,
    const bf16* source, const int* order, const Tile* tiles, const int* tile_count, const float* weights,
    bf16* out, bf16* act, float* partial, int row_total) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory);
    Ring ring(shared);
    if (threadIdx.x == 0) {
        for (Ring slot = ring; slot.parity == 0; slot.next()) {
            barrier_init(slot.full(), gathers ? 5 : 1);
            barrier_init(slot.empty(), releases);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const int total = *tile_count * column_tiles;
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (gathers || threadIdx.x == 0) produce(ring, a, b, a_ext, b_ext, gate_up, source, order, tiles, total);
    } else {
        register_increase<consumer_registers>();
        consume(ring, shared, order, tiles, total, weights, out, act, partial, row_total);
    }
}
