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
// Design     three warpgroups: one fills a ring of five K steps, two multiply in turns (ping-pong), each a tile of 128 rows x
//            192 columns of its own, so that one's epilogue runs under the other's products. A tile of at most 64 rows
//            costs half.
// Launch     -DMODE -DHIDDEN -DINNER -DTOP_K -DRANK (0: no adapter); 384 threads; grid = multiprocessors; 231520 bytes of
//            dynamic shared memory. Persistent: block b takes tiles b, b + grid, ...; the count of tiles is read on the
//            device. Tensor maps (bf16, 128-byte swizzle, zero fill; sizes innermost first):
//              a      DOWN act {F, R}, DX dgateUp {2F, R}, box {64, 128}; UP and DACT gather rows themselves
//              b      UP Wgu {H, 2F, E}, box {64, 96, 1}; DOWN Wd {F, H, E}, box {64, 192, 1};
//                     DACT Wd {F, H, E}, DX Wgu {H, 2F, E}, box {64, 64, 1}
//              a_ext  p or q {r, R}, box {64, 128}
//              b_ext  UP B1 {r, 2F, E}, box {64, 96, 1}; DOWN B2 {r, H, E}, box {64, 192, 1};
//                     DACT A2 {F, r, E}, DX A1 {H, r, E}, box {64, 64, 1}
// Numerics   bf16 operands, float accumulators over K in order: reproducible. act is made from the rounded gate and up, so
//            the backward pass makes the same bytes again. dact is rounded to bf16. dgateUp may overwrite gateUp.
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
constexpr int tile_columns = MODE == UP ? 96 : 192;
constexpr int column_tiles = ceil_div(columns, tile_columns);
constexpr int base_steps = ceil_div(k_size, 64);
constexpr int steps = base_steps + ceil_div(RANK, 64);

constexpr int a_bytes = 128 * 64 * 2;
constexpr int b_bytes = 192 * 64 * 2;
constexpr int stage_bytes = a_bytes + b_bytes;
/// DACT gives one stage to its epilogue, whose loads must be under way before the products end.
constexpr int stages = MODE == DACT ? 4 : 5;
/// Each of the 8 consumer warps stages 16 rows x 96 columns; 16 bytes between rows keep the banks apart.
constexpr int staging_pitch = 96 * 2 + 16;
/// Of DACT: 16 rows x 64 columns of the gate and of up, each row 128 bytes in the 128-byte swizzle. Two slots a warp, and the
/// weights of its 32 rows behind them.
constexpr int slot_bytes = 2 * 16 * 128;
constexpr int staging_bytes = MODE == DACT ? 2 * slot_bytes + 32 * 4 : 16 * staging_pitch;
constexpr int barriers_at = stages * stage_bytes + 8 * staging_bytes;
static_assert(barriers_at + (stages + 1) * 16 <= 231520, "the launch's dynamic shared memory");
/// The block starts with 384 x 168 registers; the three warpgroups share them anew. More than that would never be granted.
constexpr int producer_registers = 40;
constexpr int consumer_registers = 232;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");

/// Where the ring stands: the slot and the parity of its next full phase.
struct Ring {
    u32 base;
    int slot = 0;
    u32 parity = 0;

    __device__ __forceinline__ explicit Ring(u32 base) : base(base) {}
    __device__ __forceinline__ u32 a() const { return base + slot * stage_bytes; }
    __device__ __forceinline__ u32 b() const { return a() + a_bytes; }
    __device__ __forceinline__ u32 full() const { return base + barriers_at + 16 * slot; }
    __device__ __forceinline__ u32 empty() const { return full() + 8; }
    /// Completed when warpgroup `group` may multiply: a parity tells only neighbouring phases of a slot apart, so that it must
    /// not wait for a slot before the other one has seen all of its own.
    __device__ __forceinline__ u32 turn(int group) const { return base + barriers_at + 16 * stages + 8 * group; }
    __device__ __forceinline__ void advance(int count) {
        slot += count;
        parity ^= slot / stages & 1;
        slot %= stages;
    }
    __device__ __forceinline__ void next() {
        if (++slot == stages) slot = 0, parity ^= 1;
    }
};

// MARK: Filling the ring

/// One step's share of the weights (or of the adapter's second matrix).
__device__ __forceinline__ void load_b(const Ring& ring, const TensorMap& map, int k, int column, int expert) {
    if (b_transposed) {
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            tensor_load(ring.b() + i * 8192, map, ring.full(), column + 64 * i, k, expert);
        }
    } else {
        tensor_load(ring.b(), map, ring.full(), k, column, expert);
        if (MODE == UP) tensor_load(ring.b() + b_bytes / 2, map, ring.full(), k, INNER + column, expert);
    }
}

/// Without a gather thread 0 starts every copy and the others have left; with one all threads copy the rows of A, and thread 0
/// the rest.
__device__ __forceinline__ void produce(
    Ring ring, const TensorMap& a, const TensorMap& b, const TensorMap& a_ext, const TensorMap& b_ext, const bf16* source,
    const int* order, const Tile* tiles, int total) {
    // Thread i copies 16-byte chunk i % 8 of rows i / 8 + 16 j.
    const int thread = threadIdx.x, chunk = thread % 8, first_row = thread / 8;
    const u32 place = first_row * 128 + ((chunk ^ (first_row % 8)) << 4);
    // Lane l holds the source row of the tile's row 4 (thread / 32) + l % 4 + 16 (l / 4): its warp's rows are these 32. The next
    // tile's are fetched while this one's are copied.
    const int mine = thread / 32 * 4 + thread % 4 + thread % 32 / 4 * 16;
    Tile next = tiles[min((int)blockIdx.x, total - 1) / column_tiles];
    int next_source = gathers ? order[next.row + min(mine, next.count - 1)] / TOP_K : 0;
    for (int index = blockIdx.x; index < total; index += gridDim.x) {
        const Tile tile = next;
        const int column = index % column_tiles * tile_columns;
        // Rows past the tile's end are not copied, and nobody reads them.
        const bf16* rows[8];
        if (gathers) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const int row = __shfl_sync(0xffffffffu, next_source, thread % 32 / 8 + 4 * j);
                rows[j] = source + (u64)row * HIDDEN + chunk * 8;
            }
        }
        for (int step = 0; step < steps; ++step, ring.next()) {
            const int k = step * 64, k_ext = (step - base_steps) * 64;
            if (step == 0) next = tiles[min(index + (int)gridDim.x, total - 1) / column_tiles];
            if (gathers && step == steps - 1) next_source = order[next.row + min(mine, next.count - 1)] / TOP_K;
            barrier_wait(ring.empty(), ring.parity ^ 1);
            if (thread == 0) {
                barrier_expect(ring.full(), gathers && step < base_steps ? b_bytes : stage_bytes);
                if (step < base_steps) {
                    if (!gathers) tensor_load(ring.a(), a, ring.full(), k, tile.row);
                    load_b(ring, b, k, column, tile.expert);
                } else {
                    tensor_load(ring.a(), a_ext, ring.full(), k_ext, tile.row);
                    load_b(ring, b_ext, k_ext, column, tile.expert);
                }
            }
            if (!gathers) continue;
            if (step < base_steps) {
                const bool inside = k_size % 64 == 0 || k + chunk * 8 < k_size;
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    if (first_row + 16 * j < tile.count) copy_async(ring.a() + place + j * 2048, rows[j] + k, inside);
                }
            }
            copy_async_arrive(ring.full());
        }
    }
}

// MARK: Products

/// One step of K, `count` times 16 of it, for the first 64 rows and, if `both`, the last 64.
template <int count, bool both>
__device__ __forceinline__ void multiply_step(float (&d)[2][96], const Ring& ring, bool accumulates) {
    if (gathers) fence_async_proxy();
    const u64 a = operand(ring.a()), b = b_transposed ? operand(ring.b(), 8192) : operand(ring.b());
    constexpr int b_step = b_transposed ? 2048 >> 4 : 32 >> 4;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < count; ++i) {
        wgmma_64_192_16<b_transposed>(d[0], a + 2 * i, b + b_step * i, accumulates || i > 0);
        if (both) wgmma_64_192_16<b_transposed>(d[1], a + (8192 >> 4) + 2 * i, b + b_step * i, accumulates || i > 0);
    }
    wgmma_commit();
}

__device__ __forceinline__ void release(u32 barrier) {
    if (threadIdx.x % 128 == 0) barrier_arrive(barrier);
}

/// All steps of one tile into the accumulators. One step stays under way while the next starts.
template <bool both> __device__ __forceinline__ void multiply(float (&d)[2][96], Ring& ring, int group, int round) {
    barrier_wait(ring.turn(group), (round ^ group ^ 1) & 1);
    barrier_wait(ring.full(), ring.parity);
    multiply_step<4, both>(d, ring, false);
    u32 previous = ring.empty();
    ring.next();
    for (int step = 1; step < base_steps; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        multiply_step<4, both>(d, ring, true);
        wgmma_wait<1>();
        release(previous);
        previous = ring.empty();
    }
#pragma unroll
    for (int step = base_steps; step < steps; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        if (step < steps - 1) {
            multiply_step<4, both>(d, ring, true);
        } else {
            multiply_step<(RANK - 1) / 16 % 4 + 1, both>(d, ring, true);
        }
        wgmma_wait<1>();
        release(previous);
        previous = ring.empty();
    }
    release(ring.turn(group ^ 1));
    wgmma_wait<0>();
    hold(d[0]);
    if (both) hold(d[1]);
    release(previous);
}

// MARK: Epilogues, warp by warp, 16 rows at a time

/// The lane, made anew wherever it is asked for: addresses made from it are not kept in registers (or spilled, which is ruin:
/// little of the L1 cache is left) through the products.
__device__ __forceinline__ int lane_id() {
    int lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane & 31;
}

/// Where 16-byte chunk `chunk` of row `row` stands in the 128-byte swizzle.
__device__ __forceinline__ u32 swizzled(int row, int chunk) { return row * 128 + ((chunk ^ row % 8) << 4); }

/// 16 rows x 8 `chunks` columns from the warp's staging area to global memory; rows of `to` are `stride` apart. Only `count`
/// rows and columns below `limit` are written.
template <int chunks>
__device__ __forceinline__ void flush_rows(u32 staging, bf16* to, int stride, int count, int limit) {
    const int lane = lane_id();
    constexpr int at_once = 32 / chunks;
    const int first = lane / chunks, chunk = lane % chunks;
    to += (u64)first * stride + chunk * 8;
    staging += first * staging_pitch + chunk * 16;
    const int last = first < at_once && chunk * 8 < limit ? min(count, 16) : 0;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i += at_once) {
        if (first + i < last) store128(to + (u64)i * stride, load_shared128(staging + i * staging_pitch));
    }
    __syncwarp();
}

/// The same from the accumulator's layout: `pair(j, half)` is columns 8 j + 2 (lane % 4) (+ 1) of row lane / 4 + 8 half.
template <int chunks, class Pair>
__device__ __forceinline__ void store_rows(u32 staging, bf16* to, int stride, int count, int limit, Pair pair) {
    const int lane = lane_id();
    const u32 corner = staging + lane % 16 * staging_pitch + lane / 16 * 16;
#pragma unroll
    for (int j = 0; j < chunks; j += 2) {
        store_matrices(corner + j * 16, pair(j, 0), pair(j, 1), pair(j + 1, 0), pair(j + 1, 1));
    }
    flush_rows<chunks>(staging, to, stride, count, limit);
}

/// gate and up stand in the same thread: column 8 j + ... of the gate is d[4 j ...], of up d[48 + 4 j ...].
__device__ __forceinline__ void finish_up(
    const float (&d)[96], u32 staging, int row, int count, int column, bf16* gate_up, bf16* act) {
    bf16* to = gate_up + (u64)row * 2 * INNER + column;
    const int limit = INNER - column;
    store_rows<12>(staging, to, 2 * INNER, count, limit,
                   [&](int j, int half) { return pack(d[4 * j + 2 * half], d[4 * j + 2 * half + 1]); });
    store_rows<12>(staging, to + INNER, 2 * INNER, count, limit,
                   [&](int j, int half) { return pack(d[48 + 4 * j + 2 * half], d[48 + 4 * j + 2 * half + 1]); });
    if (!act) return;
    store_rows<12>(staging, act + (u64)row * INNER + column, INNER, count, limit, [&](int j, int half) {
        const u32 gate = pack(d[4 * j + 2 * half], d[4 * j + 2 * half + 1]);
        const u32 up = pack(d[48 + 4 * j + 2 * half], d[48 + 4 * j + 2 * half + 1]);
        return pack(low(gate) * sigmoid(low(gate)) * low(up), high(gate) * sigmoid(high(gate)) * high(up));
    });
}

/// The 192 columns as they are, into rows of `columns`.
__device__ __forceinline__ void finish_rows(const float (&d)[96], u32 staging, int row, int count, int column, bf16* out) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
        const int first = column + 96 * part;
        store_rows<12>(staging, out + (u64)row * columns + first, columns, count, columns - first, [&](int j, int half) {
            const int i = 48 * part + 4 * j + 2 * half;
            return pack(d[i], d[i + 1]);
        });
    }
}

/// dSwiGLU of two neighbouring columns: gate and up become their gradients. Returns act, and adds <act, dact> to `sum`.
__device__ __forceinline__ u32 differentiate(u32& gates, u32& ups, float dact0, float dact1, float weight, float& sum) {
    float act[2], dgate[2], dup[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
        const float gate = e ? high(gates) : low(gates), up = e ? high(ups) : low(ups), dact = e ? dact1 : dact0;
        const float s = sigmoid(gate), silu = gate * s;
        act[e] = silu * up;
        sum += act[e] * dact;
        dup[e] = weight * dact * silu;
        dgate[e] = weight * dact * up * (s + silu * (1 - s));
    }
    gates = pack(dgate[0], dgate[1]);
    ups = pack(dup[0], dup[1]);
    return pack(act[0], act[1]);
}

/// Starts the copies of part `part` (0 ..< 3 of the warp's first 16 rows, 3 ..< 6 of those 64 rows on) of gateUp into its slot.
__device__ __forceinline__ void fetch_gates(u32 staging, int part, int row, int count, int column, const bf16* gate_up) {
    const int lane = lane_id(), first = lane / 8 + part / 3 * 64, at = column + part % 3 * 64 + lane % 8 * 8;
    const bf16* from = gate_up + (u64)(row + first) * 2 * INNER + at;
    const u32 corner = staging + part % 2 * slot_bytes + swizzled(lane / 8, lane % 8);
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
        if (first + i < count) {
            const u32 to = (corner ^ i * 16 % 128) + i * 128;
            copy_async(to, from + i * 2 * INNER, at < INNER);
            copy_async(to + slot_bytes / 2, from + i * 2 * INNER + INNER, at < INNER);
        }
    }
    copy_async_commit();
}

/// What the epilogue of DACT needs is fetched before the products: two parts of gateUp, the weights of the warp's rows.
__device__ __forceinline__ void prepare_dact(
    u32 staging, int row, int count, int column, const int* order, const float* weights, const bf16* gate_up) {
    fetch_gates(staging, 0, row, count, column, gate_up);
    fetch_gates(staging, 1, row, count, column, gate_up);
    const int lane = lane_id(), mine = lane % 16 + lane / 16 * 64;
    if (mine < count) store_shared32(staging + 2 * slot_bytes + lane * 4, __float_as_uint(weights[order[row + mine]]));
}

/// 16 rows x 64 columns of a slot's half to global memory.
__device__ __forceinline__ void flush_swizzled(u32 from, bf16* to, int stride, int count, int limit) {
    const int lane = lane_id(), first = lane / 8;
    to += (u64)first * stride + lane % 8 * 8;
    from += swizzled(first, lane % 8);
    const int last = lane % 8 * 8 < limit ? min(count, 16) : 0;
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
        if (first + i < last) store128(to + (u64)i * stride, load_shared128((from ^ i * 16 % 128) + i * 128));
    }
}

/// The warp's 16 rows of half `half`: each part is differentiated in its slot, written out, and the slot filled with the part
/// after the next.
__device__ __forceinline__ void finish_dact(
    const float (&dact)[96], int half, u32 staging, int row, int count, int column, const bf16* gate_up, bf16* dgate_up, bf16* act,
    float* partial) {
    float weight[2], sum[2] = {};
#pragma unroll
    for (int part = 0; part < 3; ++part) {
        const u32 slot = staging + (3 * half + part) % 2 * slot_bytes;
        copy_async_wait<1>();
        __syncwarp();
        const int lane = lane_id();
        const u32 corner = slot + swizzled(lane % 16, lane / 16);
        if (part == 0) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                weight[i] = __uint_as_float(load_shared32(staging + 2 * slot_bytes + (16 * half + 8 * i + lane / 4) * 4));
            }
        }
        u32 unit[16];
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            const u32 at = corner ^ j * 16;
            u32 gate[4], up[4];
            load_matrices(gate, at);
            load_matrices(up, at + slot_bytes / 2);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = 32 * part + 4 * j + 2 * i;
                unit[2 * j + i] = differentiate(gate[i], up[i], dact[at], dact[at + 1], weight[i % 2], sum[i % 2]);
            }
            store_matrices(at, gate[0], gate[1], gate[2], gate[3]);
            store_matrices(at + slot_bytes / 2, up[0], up[1], up[2], up[3]);
        }
        const int first = column + 64 * part, rows = count - 64 * half, limit = INNER - first;
        const u64 top = row + 64 * half;
        bf16* to = dgate_up + top * 2 * INNER + first;
        __syncwarp();
        flush_swizzled(slot, to, 2 * INNER, rows, limit);
        flush_swizzled(slot + slot_bytes / 2, to + INNER, 2 * INNER, rows, limit);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            store_matrices(corner ^ j * 16, unit[2 * j], unit[2 * j + 1], unit[2 * j + 2], unit[2 * j + 3]);
        }
        __syncwarp();
        flush_swizzled(slot, act + top * INNER + first, INNER, rows, limit);
        __syncwarp();
        // Past the last part an empty group is committed, so that one group is always the younger.
        if (3 * half + part < 4) fetch_gates(staging, 3 * half + part + 2, row, count, column, gate_up);
        else copy_async_commit();
    }
    const int lane = lane_id();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float total = quad_sum(sum[i]);
        const int r = 64 * half + 8 * i + lane / 4;
        if (lane % 4 == 0 && r < count) partial[row + r] = total;
    }
}

/// A warpgroup that multiplies: every other tile of the block.
__device__ __forceinline__ void consume(
    Ring ring, u32 shared, const int* order, const Tile* tiles, int total, const float* weights, const bf16* gate_up,
    bf16* out, bf16* act, float* partial, int row_total) {
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 - 4;
    const u32 staging = shared + stages * stage_bytes + warp * staging_bytes;
    if (group == 1) ring.advance(steps);
    int round = 0;
    for (int index = blockIdx.x + group * gridDim.x; index < total; index += 2 * gridDim.x, ++round) {
        const Tile tile = tiles[index / column_tiles];
        const int column = index % column_tiles * tile_columns;
        const int row = tile.row + warp % 4 * 16, count = tile.count - warp % 4 * 16;
        if (MODE == DACT) prepare_dact(staging, row, count, column, order, weights, gate_up);
        float d[2][96] = {};
        if (tile.count > 64) multiply<true>(d, ring, group, round);
        else multiply<false>(d, ring, group, round);
        ring.advance(steps);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int at = row + 64 * half, rows = count - 64 * half;
            if (rows <= 0) break;
            if (MODE == UP) finish_up(d[half], staging, at, rows, column, out, act);
            else if (MODE == DACT) {
                finish_dact(d[half], half, staging, row, count, column, gate_up, out, act,
                            partial + (u64)(index % column_tiles) * row_total);
            } else finish_rows(d[half], staging, at, rows, column, out);
        }
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) grouped_gemm(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap a_ext,
    const __grid_constant__ TensorMap b_ext, const bf16* source, const int* order, const Tile* tiles, const int* tile_count,
    const float* weights, const bf16* gate_up, bf16* out, bf16* act, float* partial, int row_total) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory);
    Ring ring(shared);
    if (threadIdx.x == 0) {
        for (Ring slot = ring; slot.parity == 0; slot.next()) {
            barrier_init(slot.full(), gathers ? 129 : 1);
            barrier_init(slot.empty(), 1);
        }
        barrier_init(ring.turn(0), 1);
        barrier_init(ring.turn(1), 1);
        barrier_init_fence();
    }
    __syncthreads();
    const int total = *tile_count * column_tiles;
    if (total == 0) return;
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (gathers || threadIdx.x == 0) produce(ring, a, b, a_ext, b_ext, source, order, tiles, total);
    } else {
        register_increase<consumer_registers>();
        consume(ring, shared, order, tiles, total, weights, gate_up, out, act, partial, row_total);
    }
}
