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
// Launch     -DMODE -DHIDDEN -DINNER -DTOP_K -DRANK (0: no adapter); 384 threads; grid = multiprocessors; 231648 bytes of
//            dynamic shared memory. Persistent: blocks take a tile when they are free (grouped_tile_sm90.cuh); how many there
//            are, and how many are taken, stands on the device. Tensor maps (bf16, 128-byte swizzle, zero fill; sizes innermost
//            first):
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
#include "grouped_tile_sm90.cuh"
#include "wgmma.cuh"

constexpr int steps = base_steps + ceil_div(RANK, 64);
constexpr int stage_bytes = a_bytes + b_bytes;
/// DACT gives the fifth stage to its epilogue.
constexpr int stages = MODE == DACT ? 4 : 5;
constexpr int queue_at = stages * stage_bytes + (MODE == DACT ? 4 * desk_bytes + 8 * 128 : 8 * staging_bytes);
constexpr int barriers_at = queue_at + queue_bytes;
static_assert(barriers_at + (stages + 1) * 16 + (MODE == DACT ? 8 * 8 : 0) <= 231648, "the launch's dynamic shared memory");
/// The block starts with 384 x 168 registers; the three warpgroups share them anew. More than that would never be granted.
constexpr int producer_registers = 40;
constexpr int consumer_registers = 232;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");

struct Ring : RingPlace<stages, stage_bytes, barriers_at> {
    using RingPlace::RingPlace;
    __device__ __forceinline__ u32 a() const { return stage(); }
    __device__ __forceinline__ u32 b() const { return a() + a_bytes; }
    __device__ __forceinline__ Queue queue() const { return {base + queue_at}; }
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
    const int* order, const Tile* tiles, int* tile_count, int total) {
    // Thread i copies 16-byte chunk i % 8 of rows i / 8 + 16 j.
    const int thread = threadIdx.x, chunk = thread % 8, first_row = thread / 8;
    const u32 swizzled = first_row * 128 + ((chunk ^ (first_row % 8)) << 4);
    const Queue queue = ring.queue();
    if (thread == 0) queue.begin(total);
    int index;
    for (int n = 0; (index = queue.wait(n)) >= 0; ++n) {
        const Tile tile = tiles[index / column_tiles];
        const int column = index % column_tiles * tile_columns;
        int taken = 0;
        if (thread == 0) taken = take_tile(n, tile_count + 1, total);
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
        if (thread == 0) queue.put(n + 2, 2 * gridDim.x + taken, total);
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
    hold<96>(d[0]);
    if (both) hold<96>(d[1]);
    release(previous);
}

// MARK: Tiles

/// A warpgroup that multiplies: every other tile of the block.
__device__ __forceinline__ void consume(
    Ring ring, u32 shared, const int* order, const Tile* tiles, const float* weights, const bf16* gate_up, bf16* out,
    bf16* act, float* partial, int row_total) {
    const int group = consumer_group(), warp = threadIdx.x / 32 - 4;
    const u32 staging = shared + stages * stage_bytes + (MODE == DACT ? warp % 4 * desk_bytes : warp * staging_bytes);
    const u32 weight_at = shared + stages * stage_bytes + 4 * desk_bytes + warp * 128;
    if (group == 1) ring.advance(steps);
    int index;
    for (int round = 0; (index = uniform(ring.queue().wait(2 * round + group))) >= 0; ++round) {
        const Tile tile = tiles[index / column_tiles];
        const int column = index % column_tiles * tile_columns;
        if (MODE == DACT) prepare_weights(weight_at, tile.row + warp % 4 * 16, tile.count - warp % 4 * 16, order, weights);
        float d[2][96];
        if (tile.count > 64) multiply<true>(d, ring, group, round);
        else multiply<false>(d, ring, group, round);
        ring.advance(steps);
        const int row = tile.row + warp % 4 * 16, count = uniform(tile.count - warp % 4 * 16);
        if (MODE == DACT) {
            barrier_wait(ring.desk(group, warp), (round ^ group ^ 1) & 1);
            lay_out(d, staging, count);
            float* sums = partial + (u64)(index % column_tiles) * row_total;
            if (count > 0) Desk{staging, weight_at, row, count, column, gate_up, out, act, sums}.finish();
            signal(ring.desk(group ^ 1, warp));
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
    const __grid_constant__ TensorMap b_ext, const bf16* source, const int* order, const Tile* tiles, int* tile_count,
    const float* weights, const bf16* gate_up, bf16* out, bf16* act, float* partial, int row_total) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory);
    Ring ring(shared);
    if (threadIdx.x == 0) start(ring);
    __syncthreads();
    const int total = *tile_count * column_tiles;
    if (total == 0) return;
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (gathers || threadIdx.x == 0) produce(ring, a, b, a_ext, b_ext, source, order, tiles, tile_count, total);
    } else {
        register_increase<consumer_registers>();
        consume(ring, shared, order, tiles, weights, gate_up, out, act, partial, row_total);
    }
}
