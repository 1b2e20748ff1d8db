// Causal attention over packed sequences, forward, on Hopper: heads of 128.
//
// Math       o = softmax(scale q k^T) v, query i of a span seeing the keys up to keys - queries + i; logSumExp of the scores.
// Shapes     q, o bf16 [T, Q, 128]; k, v bf16 [U, G, 128], head h reading h / (Q / G); logSumExp float [T, Q]; works [blocks].
// Budget     512 FLOPs a seen pair and head. A step of 128 keys and 128 queries is 2048 cycles of the tensor cores, 1024 of the
//            exponentials' unit, 1536 of shared memory: 128 KB that the tensor cores read, 64 KB of copies.
// Design     an item is 128 queries of a span and a head; its keys are walked from the last that they see to the first. Two
//            warpgroups multiply, 64 queries each, in turns: while one takes exponentials the other one multiplies. A warpgroup's
//            next scores are under way beside its last product with values, P is an operand as it stands in registers
//            (FlashAttention-3, Shah et al. 2024). So are the queries, which spares shared memory 32 KB of reads a step. Items
//            follow each other without a gap: the first scores of the next one are made before the output of this one leaves. A
//            warp of the third warpgroup takes items and copies.
// Launch     384 threads, one block a multiprocessor, or as many as there are items; 229504 bytes of dynamic shared memory. Query
//            blocks come longest first; `together` heads (a divisor of Q) are walked side by side. Tensor maps (bf16, 128-byte
//            swizzle, zero fill; sizes innermost first): q {128, Q, T}, k, v {128, G, U}, all in boxes {64, 1, 128}.
// Numerics   float sums; probabilities rounded to bf16 for the second product. A row's maximum is raised only when it grows by
//            2^8: what a row gets depends on its keys alone, not on the rows beside it. A query that sees nothing gets 0 and -inf.
// Reference  CPUBackend.attention.
#include "flash.cuh"
#include "wgmma.cuh"

constexpr int head_size = 128;
constexpr int queries = 128;
constexpr int keys = 128;
/// 64 columns of a tile; all boxes of the tensor copies are so wide.
constexpr int box = 128 * 128;
constexpr int tile_bytes = 2 * box;
/// The block starts with 384 x 168 registers; the three warpgroups share them anew.
constexpr int producer_registers = 40;
constexpr int consumer_registers = 232;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");
/// How far (in powers of two) scores may stand above the maximum in use.
constexpr float slack = 8;

/// What the kernel is called with.
struct Arguments {
    const bf16* v_UGD;
    bf16* o_TQD;
    float* logSumExp_TQ;
    const Work* works;
    int blocks, together, Q, G;
    float scale;
};

/// Tickets that were taken behind each block's first; zero between launches.
__device__ int tickets;

// MARK: Shared memory

/// Tiles that are filled and emptied one after the other; `i` counts from the block's start.
template <int slots> struct Ring {
    u32 tiles, barriers;

    __device__ __forceinline__ u32 tile(u32 i) const { return tiles + i % slots * tile_bytes; }
    __device__ __forceinline__ u32 full(u32 i) const { return barriers + i % slots * 8; }
    __device__ __forceinline__ u32 empty(u32 i) const { return barriers + (slots + i % slots) * 8; }
    __device__ __forceinline__ void await_full(u32 i) const { barrier_wait(full(i), i / slots % 2); }
    __device__ __forceinline__ void await_empty(u32 i) const { barrier_wait(empty(i), i / slots % 2 ^ 1); }
    __device__ __forceinline__ void start(int readers) const {
        for (int i = 0; i < slots; ++i) barrier_init(full(i), 1), barrier_init(empty(i), readers);
    }
};

/// Seven tiles (one of queries, three of keys, two of values, one of the output), an item, and barriers.
struct Shared {
    u32 base;

    __device__ __forceinline__ u32 tile(int i) const { return base + i * tile_bytes; }
    __device__ __forceinline__ u32 barrier(int i) const { return item() + 32 + 8 * i; }
    __device__ __forceinline__ Ring<1> q() const { return {tile(0), barrier(0)}; }
    __device__ __forceinline__ Ring<3> k() const { return {tile(1), barrier(2)}; }
    __device__ __forceinline__ Ring<2> v() const { return {tile(4), barrier(8)}; }
    /// 16 rows of the output for each warp that multiplies.
    __device__ __forceinline__ u32 rows(int warp) const { return tile(6) + warp * 16 * head_size * 2; }
    /// Filled and emptied with the queries.
    __device__ __forceinline__ u32 item() const { return tile(7); }
};

// MARK: Work

/// An item of work: 128 queries of a span, and a head.
struct Item {
    /// The first query's row, the number of queries (0: no work is left), and of keys that the first one sees.
    int row, count, seen, head;
    /// First row and number of the span's keys; tiles of them that any query sees, but one at least.
    int key, keys, tiles;

    __device__ __forceinline__ Item(int ticket, const Arguments& x) : count(0) {
        if (ticket >= x.blocks * x.Q) return;
        const int section = ticket / (x.blocks * x.together);
        const Work work = x.works[ticket / x.together % x.blocks];
        const int first = work.block * queries;
        head = section * x.together + ticket % x.together;
        row = work.query + first;
        count = min(queries, work.queries - first);
        seen = work.keys - work.queries + first + 1;
        key = work.key;
        keys = work.keys;
        tiles = max(1, ceil_div(seen + count - 1, ::keys));
    }
    __device__ __forceinline__ explicit Item(u32 place) {
        const auto word = [=](int i) { return (int)load_shared32(place + 4 * i); };
        row = word(0), count = word(1), seen = word(2), head = word(3), tiles = word(4);
    }
    __device__ __forceinline__ void publish(u32 place) const {
        store_shared128(place, {(u32)row, (u32)count, (u32)seen, (u32)head});
        store_shared32(place + 16, tiles);
    }
    __device__ __forceinline__ int group(const Arguments& x) const { return head / (x.Q / x.G); }
};

// MARK: Copies

__device__ __forceinline__ void load_tile(u32 tile, const TensorMap& map, u32 full, int head, int row) {
    barrier_expect(full, tile_bytes);
    tensor_load(tile, map, full, 0, head, row);
    tensor_load(tile + box, map, full, 64, head, row);
}

/// A tile of values, `count` rows of which are of the span; the others, whatever they are, are multiplied by zero, and must be
/// numbers.
__device__ __forceinline__ void load_values(
    const Ring<2> ring, u32 i, const Arguments& x, const TensorMap& v, int group, int row, int count) {
    const int lane = lane_id();
    ring.await_empty(i);
    if (count >= keys) {
        if (lane == 0) load_tile(ring.tile(i), v, ring.full(i), group, row);
        return;
    }
    const bf16* from = x.v_UGD + ((u64)row * x.G + group) * head_size + lane % 16 * 8;
    const u32 tile = ring.tile(i) + lane % 16 / 8 * box;
    for (int r = lane / 16; r < keys; r += 2) {
        const bool valid = r < count;
        copy_async(tile + r * 128 + ((lane % 8 ^ r % 8) << 4), from + (valid ? (u64)r * x.G * head_size : 0), valid);
    }
    copy_async_commit();
    copy_async_wait<0>();
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) barrier_arrive(ring.full(i));
}

/// One warp: takes items; the queries of each, keys, and a step behind them values.
__device__ __forceinline__ void load(
    const Shared shared, const Arguments& x, const TensorMap& q, const TensorMap& k, const TensorMap& v) {
    const int lane = lane_id();
    int n = 0;
    // The values that are due: first row, how many of the span, group.
    int row = 0, count = 0, group = 0;
    Item item(blockIdx.x, x), next = item;
    for (int i = 0;; ++i, item = next) {
        int taken = 0;
        shared.q().await_empty(i);
        if (lane == 0) {
            item.publish(shared.item());
            if (item.count > 0) load_tile(shared.q().tile(i), q, shared.q().full(i), item.head, item.row);
            else barrier_arrive(shared.q().full(i));
        }
        if (item.count == 0) break;
        for (int tile = item.tiles - 1; tile >= 0; --tile, ++n) {
            // The next item is asked for some steps before it is needed.
            if (tile == min(1, item.tiles - 1) && lane == 0) taken = atomicAdd(&tickets, 1);
            shared.k().await_empty(n);
            if (lane == 0) {
                load_tile(shared.k().tile(n), k, shared.k().full(n), item.group(x), item.key + tile * keys);
            }
            if (tile == 0) {
                // The last one of all: each block takes one that is too many.
                if (lane == 0 && taken == x.blocks * x.Q - 1) tickets = 0;
                next = Item(gridDim.x + __shfl_sync(0xffffffffu, taken, 0), x);
            }
            if (n > 0) load_values(shared.v(), n - 1, x, v, group, row, count);
            row = item.key + tile * keys, count = item.keys - tile * keys, group = item.group(x);
        }
    }
    load_values(shared.v(), n - 1, x, v, group, row, count);
}

// MARK: Products

/// s = q k^T
__device__ __forceinline__ void multiply_scores(float (&s)[64], const u32 (&q)[32], u64 k) {
    wgmma_64_128_16<false>(s, q, k, false);
#pragma unroll
    for (int i = 1; i < 8; ++i) wgmma_64_128_16<false>(s, q + 4 * i, k + ((i / 4 * box + i % 4 * 32) >> 4), true);
    wgmma_commit();
}
/// o = P v, or += where it `accumulates`.
__device__ __forceinline__ void multiply_values(float (&o)[64], const u32 (&p)[32], u64 v, bool accumulates) {
    wgmma_64_128_16<true>(o, p, v, accumulates);
#pragma unroll
    for (int i = 1; i < 8; ++i) wgmma_64_128_16<true>(o, p + 4 * i, v + i * (2048 >> 4), true);
    wgmma_commit();
}

/// Warpgroups issue their products in turns. Each turn that is passed on is awaited in the end.
struct Turns {
    int own;

    __device__ __forceinline__ explicit Turns() : own(threadIdx.x / 128) {
        if (own == 2) pass();
    }
    __device__ __forceinline__ void await() const { asm volatile("bar.sync %0, 256;" ::"r"(own) : "memory"); }
    __device__ __forceinline__ void pass() const { asm volatile("bar.arrive %0, 256;" ::"r"(3 - own) : "memory"); }
    __device__ __forceinline__ void end() const {
        if (own == 1) await();
    }
};

/// The warp's 16 queries, as they are an operand.
__device__ __forceinline__ void load_queries(u32 (&q)[32], u32 tile) {
    const int lane = lane_id(), row = threadIdx.x / 32 * 16 - 64 + lane % 16;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        u32 piece[4];
        load_matrices(piece, tile + j / 4 * box + row * 128 + ((j % 4 * 2 + lane / 16 ^ lane % 8) << 4));
#pragma unroll
        for (int i = 0; i < 4; ++i) q[4 * j + i] = piece[i];
    }
}

// MARK: Softmax

/// Of rows lane / 4 and lane / 4 + 8 of the warp: the maximum in use, and this lane's part of the sum.
struct Softmax {
    float top[2], sum[2];

    __device__ __forceinline__ Softmax() : top{-infinity(), -infinity()}, sum{0, 0} {}
};

/// Hides what lies behind the last key that each row sees: columns from `seen` on in row 0 of the warpgroup, one more a row.
__device__ __forceinline__ void hide(float (&s)[64], int seen) {
    const int lane = lane_id(), end = seen + threadIdx.x / 32 % 4 * 16 + lane / 4 - lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 64; ++i) {
        if (i / 4 * 8 + i % 2 - i / 2 % 2 * 8 >= end) s[i] = -infinity();
    }
}

/// Scores to powers of two above the rows' maxima. Whether a maximum of the warp was raised; then sums shrink.
__device__ __forceinline__ bool exponentiate(float (&s)[64], Softmax& softmax, float (&shrink)[2], float scale) {
    bool grows = false;
    float from[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float most[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) most[i] = fmaxf(s[4 * i + 2 * half], s[4 * i + 2 * half + 1]);
#pragma unroll
        for (int i = 4; i < 16; ++i) {
            most[i % 4] = fmaxf(most[i % 4], fmaxf(s[4 * i + 2 * half], s[4 * i + 2 * half + 1]));
        }
        const float x = quad_max(fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]))) * scale;
        const bool raised = x > softmax.top[half] + slack;
        const float top = raised ? x : softmax.top[half];
        shrink[half] = raised ? power2(softmax.top[half] - top) : 1;
        softmax.top[half] = top;
        softmax.sum[half] *= shrink[half];
        // A row that has seen nothing keeps -inf, and must not subtract it from itself.
        from[half] = top == -infinity() ? 0 : top;
        grows |= raised;
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
        s[i] = power2(fmaf(s[i], scale, -from[i / 2 % 2]));
        softmax.sum[i / 2 % 2] += s[i];
    }
    return __any_sync(0xffffffffu, grows);
}

/// The output of an item leaves, through the warp's own rows of shared memory, so that whole rows are written.
__device__ __forceinline__ void finish(
    u32 rows, const Arguments& x, const Item& item, const Softmax& softmax, const float (&o)[64]) {
    const u32 lane = lane_id();
    const int first = threadIdx.x / 32 * 16 - 64;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first + (int)lane / 4 + 8 * half;
        const float sum = quad_sum(softmax.sum[half]);
        // 0 where nothing is seen; what is not a number stays so.
        inverse[half] = sum == 0 ? 0 : __fdividef(1.0f, sum);
        if (lane % 4 == 0 && row < item.count) {
            const float ln2 = 0.69314718056f;
            x.logSumExp_TQ[(u64)(item.row + row) * x.Q + item.head]
                = sum == 0 ? -infinity() : softmax.top[half] * ln2 + __logf(sum);
        }
    }
    const u32 to = rows + lane % 16 * (head_size * 2);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const float* d = o + 8 * j;
        store_matrices(to + ((2 * j + lane / 16 ^ lane % 8) << 4), pack(d[0] * inverse[0], d[1] * inverse[0]),
                       pack(d[2] * inverse[1], d[3] * inverse[1]), pack(d[4] * inverse[0], d[5] * inverse[0]),
                       pack(d[6] * inverse[1], d[7] * inverse[1]));
    }
    __syncwarp();
    // Two rows at a time.
    const u64 stride = 2 * (u64)x.Q * head_size;
    bf16* out = x.o_TQD + ((u64)(item.row + first + lane / 16) * x.Q + item.head) * head_size + lane % 16 * 8;
    const int count = item.count - first - (int)(lane / 16);
#pragma unroll
    for (int j = 0; j < 8; ++j, out += stride) {
        const u32 from = rows + (2 * j + lane / 16) * (head_size * 2) + ((lane % 16 ^ (2 * j + lane / 16) % 8) << 4);
        store128_if(2 * j < count, out, load_shared128(from));
    }
    __syncwarp();
}

/// A warpgroup that multiplies.
__device__ __forceinline__ void multiply(const Shared shared, const Arguments& x) {
    const int own = threadIdx.x / 128 - 1;
    const u32 rows = shared.rows(threadIdx.x / 32 - 4);
    const float scale = x.scale * 1.44269504089f;
    const Turns turns;
    float o[64] = {}, s[64], shrink[2];
    u32 p[32], q[32];
    Softmax softmax;

    // The item and tile of keys that scores are made of, and how many keys of it the warpgroup's first query sees.
    shared.q().await_full(0);
    Item item(shared.item());
    int i = 0, tile = item.tiles - 1, seen = item.seen + own * 64 - tile * keys;
    const auto take_queries = [&] {
        load_queries(q, shared.q().tile(i));
        signal(shared.q().empty(i));
    };
    const auto make_scores = [&](int n) { multiply_scores(s, q, operand(shared.k().tile(n))); };
    const auto take_scores = [&](int n) {
        release(shared.k().empty(n));
        if (seen < keys) hide(s, seen);
        return exponentiate(s, softmax, shrink, scale);
    };
    const auto pack_scores = [&] {
#pragma unroll
        for (int j = 0; j < 32; ++j) p[j] = pack(s[2 * j], s[2 * j + 1]);
    };

    take_queries();
    shared.k().await_full(0);
    wgmma_fence();
    make_scores(0);
    wgmma_wait<0>();
    hold<64>(s);
    take_scores(0);
    pack_scores();
    shared.v().await_full(0);
    int n = 0;
    // Whether o has products of the item's earlier steps.
    bool accumulates = false;
#pragma unroll 1
    for (;; ++n) {
        const Item last = item;
        const Softmax of_last = softmax;
        const bool ends = tile == 0;
        if (ends) {
            ++i;
            shared.q().await_full(i);
            item = Item(shared.item());
            if (item.count == 0) {
                item = last;
                break;
            }
            tile = item.tiles, seen = item.seen + own * 64 - tile * keys;
            softmax = Softmax();
            take_queries();
        }
        --tile, seen += keys;
        shared.k().await_full(n + 1);
        turns.await();
        hold<64>(o);
        wgmma_fence();
        make_scores(n + 1);
        multiply_values(o, p, operand(shared.v().tile(n), box), accumulates);
        accumulates = !ends;
        turns.pass();
        wgmma_wait<1>();
        hold<64>(s);
        const bool grows = take_scores(n + 1);
        hold<64>(s);
        // Awaited here, where nothing hurries; the branches also keep ptxas from awaiting the product before the exponentials.
        shared.v().await_full(n + 1);
        wgmma_wait<0>();
        hold<64>(o);
        release(shared.v().empty(n));
        if (ends) {
            finish(rows, x, last, of_last, o);
        } else if (grows) {
#pragma unroll
            for (int j = 0; j < 64; ++j) o[j] *= shrink[j / 2 % 2];
        }
        pack_scores();
    }
    turns.end();
    hold<64>(o);
    wgmma_fence();
    multiply_values(o, p, operand(shared.v().tile(n), box), accumulates);
    wgmma_wait<0>();
    hold<64>(o);
    finish(rows, x, item, softmax, o);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_sm90_forward(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
    const bf16* v_UGD, bf16* o_TQD, float* logSumExp_TQ, const Work* works, int blocks, int together, int Q, int G,
    float scale) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    const Shared shared = {shared_address(memory)};
    if (threadIdx.x == 0) {
        shared.q().start(8 * signals), shared.k().start(2), shared.v().start(2);
        barrier_init_fence();
    }
    __syncthreads();
    const Arguments x = {v_UGD, o_TQD, logSumExp_TQ, works, blocks, together, Q, G, scale};
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (threadIdx.x < 32) load(shared, x, q, k, v);
    } else {
        register_increase<consumer_registers>();
        multiply(shared, x);
    }
}
