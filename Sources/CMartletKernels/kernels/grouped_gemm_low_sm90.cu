// grouped_gemm_sm90.cu for adapters of rank 16, whose skinny products are made inside.
//
// Math       UP    p = s x[token] A1^T,  gateUp_RF = x[token] Wgu^T + p B1^T,  act = silu(gate) * up
//            DOWN  p = s act A2^T,  out_RH = act Wd^T + p B2^T
//            DACT  p = s dy[token] B2,  dact_RF = dy[token] Wd + p A2; the rest as there
//            p is rounded to bf16 before it is multiplied. For the adapters' gradients, of DOWN and DACT: p times the routing weight.
// Shapes     as there; A [E, 16, I], B [E, O, 16]; p_RA and weighted_RA [R, 16]
// Budget     that one's, and 2 R 16 I FLOPs: 8 % more in one column of tiles. What is saved is a kernel that reads the rows once.
// Design     as there, but for this: in the tiles of column 0 the adapter's first matrix stands in the ring beside the weights, 16
//            columns more of the product: m64n208 (in DACT, where weights have N inside, an m64n16 of its own). After the last step
//            each thread has of p just what the left operand of m64n192k16 wants, so that p goes from accumulators to registers:
//            FlashAttention's way with its probabilities. It is stored, and the other columns read it from there in the same
//            layout, before its products (DOWN, if it is there by then) or behind them. Who waits, waits for a tile that was taken
//            before (`in_order`); blocks finish their tiles in the order in which they take them, and all blocks run at once (one a
//            multiprocessor; the launch is cooperative, and refused if they cannot): so the first tile of those not done never
//            waits. 208 accumulators need 240 registers, which leaves the producers 24: a thread of those that gather has 4 rows (8
//            registers) and copies 2 chunks of each, and the rows of the next tile come through shared memory.
// Launch     -DMODE -DHIDDEN -DINNER -DTOP_K -DRANK=16; 384 threads; grid = multiprocessors, cooperative; 231648 bytes of dynamic
//            shared memory. Tensor maps a (DOWN: box {64, 32}), b and b_ext as there; instead of p
//              first  UP A1 {H, 16, E}, DOWN A2 {F, 16, E}, box {64, 16, 1}; DACT B2 {16, H, E}, box {16, 64, 1} in the
//                     32-byte swizzle
// Numerics   as there. The tiles of a row have the same p, bit for bit.
// Reference  CPUBackend.experts / expertsBackward; Dao et al. 2022, FlashAttention (an accumulator as the next operand).
#include "grouped_tile_sm90.cuh"
#include "wgmma.cuh"

static_assert(RANK == 16, "one n16 of wgmma");
constexpr int low_bytes = 16 * 64 * 2;
constexpr int stage_bytes = a_bytes + b_bytes + low_bytes;
constexpr int stages = 4;
/// The last step has the adapter's second matrix, and nothing else.
constexpr int steps = base_steps + 1;
/// Where p is asked for before the products, to be held through them; DOWN's are few steps, and p came too late behind them.
constexpr bool takes_early = MODE == DOWN;
/// Accumulators of 64 rows that a thread has: of its 192 columns, and of the 16 of p.
constexpr int values = 96 + 8;

/// The routing weights of each consumer warp's 32 rows; what the producers know of this tile and the next; then the barriers.
constexpr int weights_at = stages * stage_bytes + (MODE == DACT ? 4 * desk_bytes : 8 * staging_bytes);
constexpr int lists_at = weights_at + 8 * 128;
/// 128 tokens, and the tile.
constexpr int list_bytes = 128 * 4 + 16;
/// What each consumer warp will need to know of its tile when the products are done.
constexpr int works_at = lists_at + 2 * list_bytes;
constexpr int queue_at = works_at + 8 * 16;
constexpr int barriers_at = queue_at + queue_bytes;
static_assert(barriers_at + (stages + 1) * 16 + (MODE == DACT ? 8 * 8 : 0) <= 231648, "the launch's dynamic shared memory");
/// The block starts with 384 x 168 registers; the three warpgroups share them anew. More than that would never be granted.
constexpr int producer_registers = 24;
constexpr int consumer_registers = 240;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");

struct Ring : RingPlace<stages, stage_bytes, barriers_at> {
    using RingPlace::RingPlace;
    __device__ __forceinline__ u32 a() const { return stage(); }
    __device__ __forceinline__ u32 b() const { return a() + a_bytes; }
    __device__ __forceinline__ u32 low() const { return b() + b_bytes; }
    __device__ __forceinline__ Queue queue() const { return {base + queue_at}; }
    /// Completed when warp `warp` % 4 of warpgroup `group` may use the desk.
    __device__ __forceinline__ u32 desk(int group, int warp) const { return turn(2) + 32 * group + 8 * (warp % 4); }
};

/// The maps, by address: parameters stay where they are.
struct Maps {
    const TensorMap &a, &b, &first, &second;
};

// MARK: Filling the ring

/// What the copy engine brings of one step; one thread.
__device__ __forceinline__ void load_step(const Ring& ring, const Maps& maps, int step, const Tile& tile, int column) {
    const bool base = step < base_steps;
    const TensorMap& weights = base ? maps.b : maps.second;
    const bool makes_low = column == 0;
    const int k = base ? step * 64 : 0;
    // Boxes of 32 rows, as many as the tile has.
    const int boxes = base && !gathers ? ceil_div(tile.count, 32) : 0;
    barrier_expect(ring.full(), b_bytes + boxes * (a_bytes / 4) + (base && makes_low ? low_bytes : 0));
    if (b_transposed) {
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            tensor_load(ring.b() + i * 8192, weights, ring.full(), column + 64 * i, k, tile.expert);
        }
    } else {
        tensor_load(ring.b(), weights, ring.full(), k, column, tile.expert);
        if (MODE == UP) tensor_load(ring.b() + b_bytes / 2, weights, ring.full(), k, INNER + column, tile.expert);
    }
    if (!base) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (i < boxes) tensor_load(ring.a() + i * (a_bytes / 4), maps.a, ring.full(), k, tile.row + 32 * i);
    }
    if (makes_low) tensor_load(ring.low(), maps.first, ring.full(), MODE == DACT ? 0 : k, MODE == DACT ? k : 0, tile.expert);
}

/// The producer of a kernel that does not gather: one thread.
__device__ __forceinline__ void produce(Ring ring, const Maps& maps, const Tile* tiles, int* tile_count) {
    const int total = *tile_count * column_tiles;
    const Queue queue = ring.queue();
    queue.begin(total);
    int index;
    for (int n = 0; (index = (int)load_shared32(queue.place(n))) >= 0; ++n) {
        const Tile tile = tiles[index / column_tiles];
        const int taken = take_tile(n, tile_count + 1, total);
        for (int step = 0; step < steps; ++step, ring.next()) {
            barrier_wait(ring.empty(), ring.parity ^ 1);
            load_step(ring, maps, step, tile, index % column_tiles * tile_columns);
        }
        queue.put(n + 2, 2 * gridDim.x + taken, total);
    }
}

/// Puts tile `index` on a list; returns where the flat index of its row `thread` stands, or nil.
__device__ __forceinline__ const int* find_row(const int* order, const Tile* tiles, int index, u32 list) {
    if (index < 0) return nullptr;
    const Tile tile = tiles[index / column_tiles];
    if (threadIdx.x == 0) store_shared128(list + 512, Vector{(u32)tile.expert, (u32)tile.row, (u32)tile.count, 0});
    return (int)threadIdx.x < tile.count ? order + tile.row + threadIdx.x : nullptr;
}

/// The producers of a kernel that gathers: all threads copy rows, and thread 0 starts the copy engine. Thread i has chunks i % 4
/// and i % 4 + 4, of 16 bytes, of rows i / 4 + 32 j; on a list its four rows stand side by side. Rows past the tile's end are not
/// copied, and nobody reads them.
__device__ __forceinline__ void produce_gathering(
    Ring ring, const Maps& maps, const bf16* source, const int* order, const Tile* tiles, int* tile_count) {
    const int total = *tile_count * column_tiles, thread = threadIdx.x;
    const u32 place = thread % 32 * 16 + thread / 32 * 4;
    const u32 swizzled = thread / 4 * 128 + ((thread % 4 ^ thread / 4 % 8) << 4);
    u32 list = ring.base + lists_at;
    const Queue queue = ring.queue();
    if (thread == 0) queue.begin(total);
    const int* at = find_row(order, tiles, (int)blockIdx.x < total ? in_order(blockIdx.x, total) : -1, list);
    store_shared32(list + place, at ? *at / TOP_K : 0);
    for (int n = 0;; ++n) {
        const u32 other = 2 * (ring.base + lists_at) + list_bytes - list;
        asm volatile("bar.sync 1, 128;" ::: "memory");
        const int index = (int)load_shared32(queue.place(n));
        if (index < 0) break;
        // The next tile's row, and which is the one behind it, are on their way while this tile is copied.
        at = find_row(order, tiles, (int)load_shared32(queue.place(n + 1)), other);
        int next = 0, taken = 0;
        if (at) next = *at;
        if (thread == 0) taken = take_tile(n, tile_count + 1, total);
        const int left = (int)load_shared32(list + 520) - thread / 4;
        const bf16* rows[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            rows[j] = source + (u64)load_shared32(list + thread / 4 * 16 + j * 4) * HIDDEN + thread % 4 * 8;
        }
#pragma unroll 1
        for (int step = 0; step < steps; ++step, ring.next()) {
            barrier_wait(ring.empty(), ring.parity ^ 1);
            if (step < base_steps) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const u32 to = ((ring.a() + swizzled) ^ (i * 64)) + j * 4096;
                        const bool inside = k_size % 64 == 0 || step * 64 + (thread % 4 + i * 4) * 8 < k_size;
                        if (k_size % 64 == 0) copy_async_if(left > j * 32, to, rows[j] + i * 32);
                        else if (left > j * 32) copy_async(to, rows[j] + i * 32, inside);
                    }
                    rows[j] += 64;
                }
            }
            if (thread == 0) {
                const Tile tile = {(int)load_shared32(list + 512), 0, 0, 0};
                load_step(ring, maps, step, tile, index % column_tiles * tile_columns);
            }
            copy_async_arrive(ring.full());
        }
        // Nobody waits for it earlier.
        asm volatile("" : "+r"(next), "+r"(taken));
        if (thread == 0) queue.put(n + 2, 2 * gridDim.x + taken, total);
        list = other;
        store_shared32(list + place, next / TOP_K);
    }
}

// MARK: Products

/// 16 of K for 64 rows; p's columns, if it is made, behind the others.
template <bool makes_low>
__device__ __forceinline__ void multiply_16(float (&d)[values], u64 a, u64 b, u64 low, bool accumulates) {
    if (makes_low && !b_transposed) return wgmma_64_208_16(d, a, b, accumulates);
    wgmma_64_192_16<b_transposed>(d, a, b, accumulates);
    if (makes_low) wgmma_64_16_16(d, a, low, accumulates);
}

/// One step of K for the first 64 rows and, if `both`, the last 64.
template <bool both, bool makes_low>
__device__ __forceinline__ void multiply_step(float (&d)[2][values], const Ring& ring, bool accumulates) {
    if (gathers) fence_async_proxy();
    const u64 a = operand(ring.a()), b = b_transposed ? operand(ring.b(), 8192) : operand(ring.b()), low = operand_16(ring.low());
    constexpr int b_step = b_transposed ? 2048 >> 4 : 32 >> 4;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u64 low_i = low + (512 >> 4) * i;
        multiply_16<makes_low>(d[0], a + 2 * i, b + b_step * i, low_i, accumulates || i > 0);
        if (both) multiply_16<makes_low>(d[1], a + (8192 >> 4) + 2 * i, b + b_step * i, low_i, accumulates || i > 0);
    }
    wgmma_commit();
}

/// A tile as the warp's place in shared memory holds it through the products, so that no register has to; the block's `n`-th.
struct Work {
    int index, row, count, n;

    /// Of the barriers that the warpgroups pass to each other.
    __device__ __forceinline__ u32 parity() const { return (n / 2 ^ n ^ 1) & 1; }

    static __device__ __forceinline__ u32 place(const Ring& ring) { return ring.base + works_at + (thread_id() / 32 - 4) * 16; }
    __device__ __forceinline__ void keep(const Ring& ring) const {
        if (lane_id() == 0) store_shared128(place(ring), Vector{(u32)index, (u32)row, (u32)count, (u32)n});
        __syncwarp();
    }
    static __device__ __forceinline__ Work kept(const Ring& ring) {
        const Vector v = load_shared128(place(ring));
        return {(int)v.x, (int)v.y, (int)v.z, (int)v.w};
    }
};

/// What the consumers are told besides the ring; grouped_gemm's own parameters, and where p goes.
struct Arguments {
    Tile* tiles;
    const int* order;
    const float* weights;
    const bf16* gate_up;
    bf16 *out, *act;
    float* partial;
    int row_total;
    bf16 *p_RA, *weighted_RA;
    float scale;

    /// Counts the warps that have stored the tile's p, then those that have read it; zero again after the last.
    __device__ __forceinline__ int* ready(int index) const { return &tiles[index / column_tiles].ready; }
};

/// p of 64 rows, scaled and rounded, as a left operand; stored.
__device__ __forceinline__ void finish_low(
    const float (&d)[values], int half, u32 (&low)[4], const Ring& ring, const Arguments& to) {
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = to.scale * d[96 + i];
#pragma unroll
    for (int i = 0; i < 4; ++i) low[i] = pack(x[2 * i], x[2 * i + 1]);
    const Work work = Work::kept(ring);
    const int lane = lane_id(), warp = thread_id() / 32 - 4;
    const u32 weights = ring.base + weights_at + warp * 128;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int own = lane / 4 + 8 * i, r = half * 64 + warp % 4 * 16 + own;
        if (r >= work.count) continue;
        const u64 at = (u64)(work.row + r) * (RANK / 2) + lane % 4;
        u32* p = (u32*)to.p_RA + at;
        p[0] = low[i], p[4] = low[2 + i];
        if (MODE == UP || !to.weighted_RA) continue;
        const float weight = __uint_as_float(load_shared32(weights + (16 * half + own) * 4));
        u32* weighted = (u32*)to.weighted_RA + at;
        weighted[0] = pack(weight * x[2 * i], weight * x[2 * i + 1]);
        weighted[4] = pack(weight * x[4 + 2 * i], weight * x[5 + 2 * i]);
    }
}

/// The warp's rows of p are stored, or read.
template <bool makes_low> __device__ __forceinline__ void count_ready(const Ring& ring, const Arguments& to) {
    int* ready = to.ready(Work::kept(ring).index);
    __syncwarp();
    if (lane_id() > 0) return;
    if (makes_low) asm volatile("red.release.gpu.global.inc.u32 [%0], %1;" ::"l"(ready), "r"(4 * column_tiles - 1) : "memory");
    else asm volatile("red.relaxed.gpu.global.inc.u32 [%0], %1;" ::"l"(ready), "r"(4 * column_tiles - 1) : "memory");
}

/// p of the tile's rows as left operands, zeros past the end; false, and nothing, if its tile of column 0 has not stored it yet.
template <bool both> __device__ __forceinline__ bool take_low(u32 (&low)[2][4], const Ring& ring, const Arguments& to) {
    const Work work = Work::kept(ring);
    int count;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(to.ready(work.index)) : "memory");
    if (__any_sync(0xffffffffu, count < 4)) return false;
    const int lane = lane_id(), row = (thread_id() / 32 - 4) % 4 * 16 + lane / 4;
    const u32* p = (const u32*)to.p_RA + (u64)(work.row + row) * (RANK / 2) + lane % 4;
#pragma unroll
    for (int i = 0; i < (both ? 8 : 4); ++i) {
        const int below = i / 4 * 64 + i % 2 * 8;
        low[i / 4][i % 4] = load32_if(row + below < work.count, p + below * (RANK / 2) + i % 4 / 2 * 4);
    }
    return true;
}

/// All steps of one tile into the accumulators. One step stays under way while the next starts.
template <bool both, bool makes_low>
__device__ __forceinline__ void multiply(float (&d)[2][values], Ring& ring, u32 parity, const Arguments& to) {
    u32 low[2][4];
    bool has_low = makes_low;
    if (!makes_low && takes_early) has_low = take_low<both>(low, ring, to);
    barrier_wait(ring.turn(thread_id() / 128 - 1), parity);
    barrier_wait(ring.full(), ring.parity);
    multiply_step<both, makes_low>(d, ring, false);
    u32 previous = ring.empty();
    ring.next();
    // By rounds of the ring; left to the compiler, or with a tile's place in registers, it ran out of them for some widths, and waited
    // for each product (its warning C7511).
#pragma unroll stages
    for (int step = 1; step < base_steps; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        multiply_step<both, makes_low>(d, ring, true);
        wgmma_wait<1>();
        release(previous);
        previous = ring.empty();
    }
    barrier_wait(ring.full(), ring.parity);
    release(ring.turn(2 - thread_id() / 128));
    while (!has_low) has_low = take_low<both>(low, ring, to);
    wgmma_wait<0>();
    constexpr int held = makes_low ? values : 96;
    hold<held>(d[0]);
    if (both) hold<held>(d[1]);
    release(previous);
    const u64 b = b_transposed ? operand(ring.b(), 8192) : operand(ring.b());
    if (makes_low) finish_low(d[0], 0, low[0], ring, to);
    if (makes_low && both) finish_low(d[1], 1, low[1], ring, to);
    wgmma_fence();
    wgmma_64_192_16<b_transposed>(d[0], low[0], b);
    if (both) wgmma_64_192_16<b_transposed>(d[1], low[1], b);
    wgmma_commit();
    wgmma_wait<0>();
    hold<96>(d[0]);
    if (both) hold<96>(d[1]);
    release(ring.empty());
    ring.next();
    count_ready<makes_low>(ring, to);
}

// MARK: Tiles

/// A warpgroup that multiplies: every other tile of the block.
__device__ __forceinline__ void consume(Ring ring, const Arguments& to) {
    Work next = {0, 0, 0, consumer_group()};
    if (next.n == 1) ring.advance(steps);
    while ((next.index = uniform(ring.queue().wait(next.n))) >= 0) {
        const Tile tile = to.tiles[next.index / column_tiles];
        next.row = tile.row, next.count = tile.count;
        next.keep(ring);
        const bool makes_low = next.index % column_tiles == 0;
        if (MODE == DACT || MODE == DOWN && to.weighted_RA && makes_low) {
            const int warp = thread_id() / 32 - 4, row = warp % 4 * 16;
            prepare_weights(ring.base + weights_at + warp * 128, tile.row + row, tile.count - row, to.order, to.weights);
            __syncwarp();
        }
        float d[2][values];
        const u32 parity = next.parity();
        if (tile.count > 64) makes_low ? multiply<true, true>(d, ring, parity, to) : multiply<true, false>(d, ring, parity, to);
        else makes_low ? multiply<false, true>(d, ring, parity, to) : multiply<false, false>(d, ring, parity, to);
        ring.advance(steps);
        const Work work = Work::kept(ring);
        const int warp = thread_id() / 32 - 4, column = work.index % column_tiles * tile_columns;
        const int row = work.row + warp % 4 * 16, count = uniform(work.count - warp % 4 * 16);
        const u32 staging = ring.base + stages * stage_bytes + (MODE == DACT ? warp % 4 * desk_bytes : warp * staging_bytes);
        if (MODE == DACT) {
            barrier_wait(ring.desk(warp / 4, warp), work.parity());
            lay_out(d, staging, count);
            const u32 weight_at = ring.base + weights_at + warp * 128;
            float* sums = to.partial + (u64)(work.index % column_tiles) * to.row_total;
            if (count > 0) Desk{staging, weight_at, row, count, column, to.gate_up, to.out, to.act, sums}.finish();
            signal(ring.desk(1 - warp / 4, warp));
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (MODE == DACT || count <= 64 * half) break;
            if (MODE == UP) finish_up(d[half], staging, row + 64 * half, count - 64 * half, column, to.out, to.act);
            else finish_rows(d[half], staging, row + 64 * half, count - 64 * half, column, to.out);
        }
        next = Work::kept(ring);
        next.n += 2;
        __syncwarp();
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) grouped_gemm_low(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap first,
    const __grid_constant__ TensorMap second, const bf16* source, const int* order, Tile* tiles, int* tile_count,
    const float* weights, const bf16* gate_up, bf16* out, bf16* act, float* partial, int row_total, bf16* p_RA, bf16* weighted_RA,
    float scale) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    Ring ring(shared_address(memory));
    if (threadIdx.x == 0) start(ring);
    __syncthreads();
    const Maps maps = {a, b, first, second};
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (gathers) produce_gathering(ring, maps, source, order, tiles, tile_count);
        else if (threadIdx.x == 0) produce(ring, maps, tiles, tile_count);
    } else {
        register_increase<consumer_registers>();
        consume(ring, {tiles, order, weights, gate_up, out, act, partial, row_total, p_RA, weighted_RA, scale});
    }
}
