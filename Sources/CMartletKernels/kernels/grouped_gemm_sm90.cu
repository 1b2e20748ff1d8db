// Three of the four grouped GEMMs of a layer's experts on Hopper, one kernel specialised by MODE; the fourth is
// grouped_gemm_dx_sm90.cu.
//
// Math       UP    gateUp_RF = x[token] Wgu^T + p1 B1^T,  act = silu(gate) * up
//            DOWN  out_RH   = act Wd^T + p2 B2^T
//            DACT  dact_RF  = dy[token] Wd + q2 A2; dgateUp_RF = weight * dSwiGLU(gateUp, dact), act again,
//                  partial[n][r] = <act, dact> over the columns of tile n (their sum is the routing weight's gradient)
//            The adapter is one more step of K: [x | p] [W | B]. p1, p2, q2 [R, r] carry its scale (lora_project.cu).
// Shapes     rows in the order of `order_R`; Wgu [E, 2F, H] (gate rows first) and Wd [E, H, F] as in checkpoints; A [E, r, I],
//            B [E, O, r]. F and H multiples of 8, r of 8; edges of tiles are predicated, so any counts of rows are right.
// Budget     UP 4 R F H FLOPs, DOWN and DACT 2 R F H (+ 2 R r (I + O)). Bytes: the weights of experts that have rows
//            once (while an expert's tiles are together in L2), inputs once, outputs once.
// Design     three warpgroups: one fills a ring of five K steps, two multiply in turns (ping-pong), each a tile of 128 rows x
//            192 columns of its own, so that one's epilogue runs under the other's products. A tile of at most 64 rows
//            costs half. DACT has a ring of four: its products are laid out in shared memory, which frees their registers,
//            and are finished four rows at a time while the next four of gateUp are on the way.
// Launch     -DMODE -DHIDDEN -DINNER -DTOP_K -DRANK (0: no adapter); 384 threads; grid = multiprocessors; 231520 bytes of
//            dynamic shared memory. Persistent: block b takes tiles b, b + grid, ...; the count of tiles is read on the
//            device. Tensor maps (bf16, 128-byte swizzle, zero fill; sizes innermost first):
//              a      DOWN act {F, R}, box {64, 128}; UP and DACT gather rows themselves
//              b      UP Wgu {H, 2F, E}, box {64, 96, 1}; DOWN Wd {F, H, E}, box {64, 192, 1};
//                     DACT Wd {F, H, E}, box {64, 64, 1}
//              a_ext  p or q {r, R}, box {64, 128}
//              b_ext  UP B1 {r, 2F, E}, box {64, 96, 1}; DOWN B2 {r, H, E}, box {64, 192, 1};
//                     DACT A2 {F, r, E}, box {64, 64, 1}
// Numerics   bf16 operands, float accumulators over K in order: reproducible. act is made from the rounded gate and up, so
//            the backward pass makes the same bytes again. dact is rounded to bf16. dgateUp may overwrite gateUp:
//            each element is read by the thread that writes it.
// Reference  CPUBackend.experts / expertsBackward; Guo et al. 2025, SonicMoE (gather in the loads, dSwiGLU in the epilogue).
#include "experts.cuh"
#include "sm90.cuh"

constexpr bool gathers = MODE == UP || MODE == DACT;
constexpr bool b_transposed = MODE == DACT;
constexpr int k_size = MODE == DOWN ? INNER : HIDDEN;
constexpr int columns = MODE == DOWN ? HIDDEN : INNER;
/// Output columns of a tile; UP has the gate and the up column of each.
constexpr int tile_columns = MODE == UP ? 96 : 192;
constexpr int column_tiles = ceil_div(columns, tile_columns);
constexpr int base_steps = ceil_div(k_size, 64);
constexpr int steps = base_steps + ceil_div(RANK, 64);

constexpr int a_bytes = 128 * 64 * 2;
constexpr int b_bytes = 192 * 64 * 2;
constexpr int stage_bytes = a_bytes + b_bytes;
/// DACT gives the fifth stage to its epilogue.
constexpr int stages = MODE == DACT ? 4 : 5;
/// Each of the 8 consumer warps stages 16 rows x 96 columns; 16 bytes between rows keep the banks apart.
constexpr int staging_pitch = 96 * 2 + 16;
constexpr int staging_bytes = 16 * staging_pitch;
/// In DACT warps i of the two groups share a desk for their 32 rows x 192 columns of dact; behind the four desks stand the
/// weights of each warp's rows.
constexpr int desk_pitch = 192 * 2 + 16;
constexpr int desk_bytes = 32 * desk_pitch;
constexpr int barriers_at = stages * stage_bytes + (MODE == DACT ? 4 * desk_bytes + 8 * 128 : 8 * staging_bytes);
static_assert(barriers_at + (stages + 1) * 16 + (MODE == DACT ? 8 * 8 : 0) <= 231520, "the launch's dynamic shared memory");
/// The block starts with 384 x 168 registers; the three warpgroups share them anew. More than that would never be granted.
constexpr int producer_registers = 40;
constexpr int consumer_registers = 232;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");

struct Ring : RingPlace<stages, stage_bytes, barriers_at> {
    using RingPlace::RingPlace;
    __device__ __forceinline__ u32 a() const { return stage(); }
    __device__ __forceinline__ u32 b() const { return a() + a_bytes; }
    /// Completed when warp `warp` % 4 of warpgroup `group` may use the desk.
    __device__ __forceinline__ u32 desk(int group, int warp) const { return turn(2) + 32 * group + 8 * (warp % 4); }
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
    const u32 swizzled = first_row * 128 + ((chunk ^ (first_row % 8)) << 4);
    for (int index = blockIdx.x; index < total; index += gridDim.x) {
        const Tile tile = tiles[index / column_tiles];
        const int column = index % column_tiles * tile_columns;
        // Rows past the tile's end are not copied, and nobody reads them.
        const bf16* rows[8];
        if (gathers) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const int row = min(first_row + 16 * j, tile.count - 1);
                rows[j] = source + (u64)(order[tile.row + row] / TOP_K) * HIDDEN + chunk * 8;
            }
        }
        for (int step = 0; step < steps; ++step, ring.next()) {
            const int k = step * 64, k_ext = (step - base_steps) * 64;
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
                    if (first_row + 16 * j < tile.count) copy_async(ring.a() + swizzled + j * 2048, rows[j] + k, inside);
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
        return swiglu(gate, up);
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

/// Before the products: the weights of the warp's 32 rows. (gateUp as far as L2 here, too, was slower.)
__device__ __forceinline__ void prepare_dact(u32 weight_at, int row, int count, const int* order, const float* weights) {
    const int lane = lane_id(), mine = lane % 16 + lane / 16 * 64;
    if (mine < count) store_shared32(weight_at + lane * 4, __float_as_uint(weights[order[row + mine]]));
}

/// The warp's rows of dact, rounded, on its desk: rows 0 ..< 16 of the first half of the tile, 16 ..< 32 of the second.
__device__ __forceinline__ void lay_out(const float (&d)[2][96], u32 desk, int count) {
    const int lane = lane_id();
    const u32 corner = desk + lane % 16 * desk_pitch + lane / 16 * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (count <= 64 * half) break;
#pragma unroll
        for (int j = 0; j < 24; j += 2) {
            const float* x = d[half] + 4 * j;
            store_matrices(corner + half * 16 * desk_pitch + j * 16, pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]),
                           pack(x[6], x[7]));
        }
    }
    __syncwarp();
}

/// Four rows: 8 lanes take 8 columns each of a row, three times.
struct FourRows {
    Vector gate[3], up[3];
};

/// DACT's columns of rows 4 i ... of the warp's 32, eight lanes a row.
struct Desk {
    u32 dact, weight_at;
    int row, count, column;
    const bf16* gate_up;
    bf16* dgate_up;
    bf16* act;
    float* partial;

    __device__ __forceinline__ int at(int i) const { return i / 4 * 64 + i % 4 * 4 + lane_id() / 8; }
    __device__ __forceinline__ FourRows load(int i) const {
        FourRows rows;
        const int r = at(i), first = column + lane_id() % 8 * 8;
        const bf16* from = gate_up + (u64)(row + r) * 2 * INNER + first;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            rows.gate[c] = rows.up[c] = Vector{0, 0, 0, 0};
            if (r >= count || first + 64 * c >= INNER) continue;
            rows.gate[c] = load128_once(from + 64 * c);
            rows.up[c] = load128_once(from + INNER + 64 * c);
        }
        return rows;
    }
    __device__ __forceinline__ void finish(int i, FourRows& rows) const {
        const int lane = lane_id(), r = at(i), first = column + lane % 8 * 8, local = 4 * i + lane / 8;
        const float weight = __uint_as_float(load_shared32(weight_at + local * 4));
        Vector unit[3];
#pragma unroll
        for (int c = 0; c < 3; ++c) unit[c] = load_shared128(dact + local * desk_pitch + (64 * c + lane % 8 * 8) * 2);
        float sum = 0;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            sum += swiglu_backward(rows.gate[c].x, rows.up[c].x, unit[c].x, weight);
            sum += swiglu_backward(rows.gate[c].y, rows.up[c].y, unit[c].y, weight);
            sum += swiglu_backward(rows.gate[c].z, rows.up[c].z, unit[c].z, weight);
            sum += swiglu_backward(rows.gate[c].w, rows.up[c].w, unit[c].w, weight);
        }
        bf16* to = dgate_up + (u64)(row + r) * 2 * INNER + first;
        bf16* unit_to = act + (u64)(row + r) * INNER + first;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const bool inside = r < count && first + 64 * c < INNER;
            store128_if(inside, to + 64 * c, rows.gate[c]);
            store128_if(inside, to + INNER + 64 * c, rows.up[c]);
            store128_if(inside, unit_to + 64 * c, unit[c]);
        }
#pragma unroll
        for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
        if (lane % 8 == 0 && r < count) partial[row + r] = sum;
    }
    /// While four rows are worked on, the next four are on the way.
    __device__ __forceinline__ void finish() const {
        const int quads = count > 64 ? 8 : 4;
        FourRows even = load(0), odd = load(1);
#pragma unroll 1
        for (int i = 0; i < quads; i += 2) {
            finish(i, even);
            if (i + 2 < quads) even = load(i + 2);
            finish(i + 1, odd);
            if (i + 2 < quads) odd = load(i + 3);
        }
    }
};

/// A warpgroup that multiplies: every other tile of the block.
__device__ __forceinline__ void consume(
    Ring ring, u32 shared, const int* order, const Tile* tiles, int total, const float* weights, const bf16* gate_up,
    bf16* out, bf16* act, float* partial, int row_total) {
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 - 4;
    const u32 staging = shared + stages * stage_bytes + (MODE == DACT ? warp % 4 * desk_bytes : warp * staging_bytes);
    const u32 weight_at = shared + stages * stage_bytes + 4 * desk_bytes + warp * 128;
    if (group == 1) ring.advance(steps);
    int round = 0;
    for (int index = blockIdx.x + group * gridDim.x; index < total; index += 2 * gridDim.x, ++round) {
        const Tile tile = tiles[index / column_tiles];
        const int column = index % column_tiles * tile_columns;
        if (MODE == DACT) prepare_dact(weight_at, tile.row + warp % 4 * 16, tile.count - warp % 4 * 16, order, weights);
        float d[2][96];
        if (tile.count > 64) multiply<true>(d, ring, group, round);
        else multiply<false>(d, ring, group, round);
        ring.advance(steps);
        const int row = tile.row + warp % 4 * 16, count = tile.count - warp % 4 * 16;
        if (MODE == DACT) {
            barrier_wait(ring.desk(group, warp), (round ^ group ^ 1) & 1);
            lay_out(d, staging, count);
            float* sums = partial + (u64)(index % column_tiles) * row_total;
            if (count > 0) Desk{staging, weight_at, row, count, column, gate_up, out, act, sums}.finish();
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(ring.desk(group ^ 1, warp));
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (MODE == DACT || count <= 64 * half) break;
            if (MODE == UP) finish_up(d[half], staging, row + 64 * half, count - 64 * half, column, out, act);
            else finish_rows(d[half], staging, row + 64 * half, count - 64 * half, column, out);
        }
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) grouped_gemm(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap a_ext,
    const __grid_constant__ TensorMap b_ext, const bf16* source, const int* order, const Tile* tiles, const int* tile_count,
    const float* weights, const bf16* gate_up, bf16* out, bf16* act, float* partial, int row_total) {
    begin_kernel();
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
        for (int i = 0; i < (MODE == DACT ? 8 : 0); ++i) barrier_init(ring.desk(i / 4, i), 1);
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
