// The gradient of the experts' inputs on Hopper: a grouped GEMM whose work follows the routing at 16 rows.
//
// Math       dx_RH = dgateUp Wgu + q1 A1; the adapter is one more step of K: [dgateUp | q1] [Wgu ; A1]
// Shapes     rows in the order of `order_R`; Wgu [E, 2F, H] as in checkpoints; A1 [E, r, H]; q1 [R, r] carries the adapter's scale
//            (lora_project.cu). F and H multiples of 8, r of 8; edges of tiles are predicated, so any counts of rows are right.
// Budget     4 R F H FLOPs (+ 2 R r H). Bytes: the weights of experts that have rows once (while an expert's tiles are together in
//            L2), inputs once, outputs once.
// Design     a tile is 128 output columns times at most 192 rows, computed as its transpose: the weights stand on the side of wgmma
//            that has 64 rows always, the tokens on the one that may have many widths. Three warpgroups: a thread of one fills a
//            ring of four K steps, two multiply in turns (ping-pong), each a tile of its own, so that one's epilogue runs under the
//            other's products. Products are laid out by rows on a desk in shared memory, and leave from there. (The other three
//            products of the experts are slower so: lab log, third round.)
// Launch     -DHIDDEN -DINNER -DRANK (0: no adapter; other constants do not matter); 384 threads; grid = multiprocessors; 216256 bytes of dynamic shared memory.
//            Persistent: block b takes tiles b, b + grid, ...; the count of parts (routing.cu) is read on the device. Tensor maps
//            (bf16, 128-byte swizzle, zero fill; sizes innermost first):
//              a      dgateUp {2F, R}, box {64, 48}       a_ext  q1 {r, R}, box {64, 48}
//              b      Wgu {H, 2F, E}, box {64, 64, 1}     b_ext  A1 {H, r, E}, box {64, 64, 1}
// Numerics   bf16 operands, float accumulators over K in order: reproducible.
// Reference  CPUBackend.expertsBackward.
#include "wgmma.cuh"

constexpr int tile_columns = 128;
constexpr int column_tiles = ceil_div(HIDDEN, tile_columns);
constexpr int base_steps = ceil_div(2 * INNER, 64);
constexpr int steps = base_steps + ceil_div(RANK, 64);
/// Rows of a box of tokens.
constexpr int box_rows = 48;

constexpr int weight_bytes = 128 * 64 * 2;
constexpr int stage_bytes = weight_bytes + part_rows * 64 * 2;
constexpr int stages = 4;
/// 16 bytes between rows keep the banks apart.
constexpr int desk_pitch = 128 * 2 + 16;
constexpr int desk_at = stages * stage_bytes;
constexpr int barriers_at = desk_at + part_rows * desk_pitch;
static_assert(barriers_at + stages * 16 + 4 * 8 <= 216256, "the launch's dynamic shared memory");
/// The block starts with 384 x 168 registers; the three warpgroups share them anew. More than that would never be granted.
constexpr int producer_registers = 40;
constexpr int consumer_registers = 232;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");

struct Ring : RingPlace<stages, stage_bytes, barriers_at> {
    using RingPlace::RingPlace;
    __device__ __forceinline__ u32 weights() const { return stage(); }
    __device__ __forceinline__ u32 rows() const { return weights() + weight_bytes; }
    /// Completed when warpgroup `group` may use the desk.
    __device__ __forceinline__ u32 desk(int group) const { return turn(2 + group); }
};

// MARK: Filling the ring

/// One step's share of the weights (or of the adapter's second matrix).
__device__ __forceinline__ void load_weights(const Ring& ring, const TensorMap& map, int k, int column, int expert) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int first = column + 64 * half;
        tensor_load(ring.weights() + weight_bytes / 2 * half, map, ring.full(), first, k, expert);
    }
}

/// The tile's rows of one step; a box may reach into rows behind them, and nobody reads what comes of those.
__device__ __forceinline__ void load_rows(const Ring& ring, const TensorMap& map, int k, const Tile& tile) {
    for (int i = 0; i < tile.count; i += box_rows) tensor_load(ring.rows() + i * 128, map, ring.full(), k, tile.row + i);
}

/// What one thread does: all copies.
__device__ __forceinline__ void produce(
    Ring ring, const TensorMap& a, const TensorMap& b, const TensorMap& a_ext, const TensorMap& b_ext, const Tile* tiles,
    int total) {
    for (int index = blockIdx.x; index < total; index += gridDim.x) {
        const Tile tile = tiles[index / column_tiles];
        const int column = index % column_tiles * tile_columns;
        const u32 bytes = weight_bytes + ceil_div(tile.count, box_rows) * box_rows * 128;
        for (int step = 0; step < steps; ++step, ring.next()) {
            barrier_wait(ring.empty(), ring.parity ^ 1);
            barrier_expect(ring.full(), bytes);
            if (step < base_steps) {
                load_weights(ring, b, step * 64, column, tile.expert);
                load_rows(ring, a, step * 64, tile);
            } else {
                load_weights(ring, b_ext, (step - base_steps) * 64, column, tile.expert);
                load_rows(ring, a_ext, (step - base_steps) * 64, tile);
            }
        }
    }
}

// MARK: Products

/// One step of K, `count` times 16 of it, for `n` rows; d[0] and d[1] are the tile's first and last 64 columns.
template <int n, int count>
__device__ __forceinline__ void multiply_step(float (&d)[2][96], const Ring& ring) {
    const u64 weights = operand(ring.weights(), 8192), rows = operand(ring.rows());
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < count; ++i) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            Wgmma<n>::multiply(d[m], weights + (8192 >> 4) * m + (2048 >> 4) * i, rows + 2 * i);
        }
    }
    wgmma_commit();
}

/// Keeps the compiler from moving what reads or writes the accumulators across this place.
template <int count> __device__ __forceinline__ void hold(float (&d)[2][96]) {
#pragma unroll
    for (int i = 0; i < count; ++i) asm volatile("" : "+f"(d[0][i]), "+f"(d[1][i])::"memory");
}

/// All steps of one tile of at most `n` rows into the accumulators. One step stays under way while the next starts.
template <int n> __device__ __forceinline__ void multiply(float (&d)[2][96], Ring& ring, u32 next_turn) {
    u32 previous = 0;
    for (int step = 0; step < base_steps; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        multiply_step<n, 4>(d, ring);
        wgmma_wait<1>();
        if (step > 0) release(previous);
        previous = ring.empty();
    }
#pragma unroll
    for (int step = base_steps; step < steps; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        if (step < steps - 1) {
            multiply_step<n, 4>(d, ring);
        } else {
            multiply_step<n, (RANK - 1) / 16 % 4 + 1>(d, ring);
        }
        wgmma_wait<1>();
        release(previous);
        previous = ring.empty();
    }
    release(next_turn);
    wgmma_wait<0>();
    hold<n / 2>(d);
    release(previous);
}

/// The narrowest product that has `count` rows.
__device__ __forceinline__ void multiply(float (&d)[2][96], Ring& ring, u32 next_turn, int count) {
    switch (ceil_div(count, part_unit)) {
#define CASE(units) case units: return multiply<part_unit * units>(d, ring, next_turn);
        CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
        default: return multiply<64>(d, ring, next_turn);
    }
}

// MARK: Epilogues

/// All threads of warpgroup `group`.
__device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

/// The tile, rounded: row i of the desk is token i, its columns those of d[0] and then those of d[1].
__device__ __forceinline__ void lay_out(const float (&d)[2][96], u32 desk, int count) {
    const int lane = lane_id(), warp = threadIdx.x / 32 % 4;
    const u32 corner = desk + (lane / 16 * 8 + lane % 8) * desk_pitch + (warp * 16 + lane / 8 % 2 * 8) * 2;
#pragma unroll
    for (int j = 0; j < part_rows / 8; j += 2) {
        if (8 * j >= count) break;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const float* x = d[m] + 4 * j;
            store_matrices_transposed(corner + j * 8 * desk_pitch + m * 128, pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]),
                                      pack(x[6], x[7]));
        }
    }
}

/// The 128 columns as they are, into rows of the result.
__device__ __forceinline__ void finish_rows(u32 desk, const Tile& tile, int column, bf16* out) {
    const int thread = threadIdx.x % 128, first = column + thread % 16 * 8;
    if (first >= HIDDEN) return;
    desk += thread % 16 * 16;
#pragma unroll 4
    for (int i = thread / 16; i < tile.count; i += 8) {
        store128(out + (u64)(tile.row + i) * HIDDEN + first, load_shared128(desk + i * desk_pitch));
    }
}

/// A warpgroup that multiplies: every other tile of the block.
__device__ __forceinline__ void consume(Ring ring, const Tile* tiles, int total, bf16* out) {
    const int group = consumer_group();
    const u32 desk = ring.base + desk_at;
    if (group == 1) ring.advance(steps);
    int round = 0;
    for (int index = blockIdx.x + group * gridDim.x; index < total; index += 2 * gridDim.x, ++round) {
        const Tile tile = tiles[index / column_tiles];
        const int column = index % column_tiles * tile_columns;
        const u32 parity = (round ^ group ^ 1) & 1;
        // Accumulators that a loop hands on undefined would be kept alive, and spilled, through the epilogue.
        float d[2][96] = {};
        hold<96>(d);
        barrier_wait(ring.turn(group), parity);
        multiply(d, ring, ring.turn(group ^ 1), tile.count);
        ring.advance(steps);
        barrier_wait(ring.desk(group), parity);
        lay_out(d, desk, tile.count);
        group_sync(group);
        finish_rows(desk, tile, column, out);
        group_sync(group);
        release(ring.desk(group ^ 1));
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) grouped_gemm_dx(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap a_ext,
    const __grid_constant__ TensorMap b_ext, const Tile* parts, const int* part_count, bf16* out) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    Ring ring(shared_address(memory));
    if (threadIdx.x == 0) {
        for (Ring slot = ring; slot.parity == 0; slot.next()) {
            barrier_init(slot.full(), 1);
            barrier_init(slot.empty(), 1);
        }
        for (int i = 0; i < 4; ++i) barrier_init(ring.turn(i), 1);
        barrier_init_fence();
    }
    __syncthreads();
    const int total = *part_count * column_tiles;
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (threadIdx.x == 0) produce(ring, a, b, a_ext, b_ext, parts, total);
    } else {
        register_increase<consumer_registers>();
        consume(ring, parts, total, out);
    }
}
