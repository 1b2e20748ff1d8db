// Causal attention over packed sequences, backward, on Hopper: heads of 128.
//
// Math       P = exp(scale q k^T - logSumExp); dv += P^T do; dS = P (do v^T - <do, o>); dk += scale dS^T q; dq = scale dS k.
// Shapes     q, o, do, dq [T, Q, 128], k, v, dk, dv [U, G, 128] bf16; logSumExp float [T, Q]; lse, delta float [Q, T]; sums float
//            [Q, T, 128] and [blocks of keys x G, 256 x 128], in no order that matters elsewhere; state int [1 + tiles of 64 queries
//            x Q + blocks of keys x G], zeros.
// Budget     1280 FLOPs a seen pair and head. A step of 128 keys and 64 queries is 2560 cycles of the tensor cores and 2944 of shared
//            memory: 256 KB that they read, 112 KB of copies.
// Design     a block keeps 128 keys and walks the queries that see them, for the heads of its part of a group in turn. Two warpgroups
//            multiply, 64 keys each: scores as their transpose, so that P and dS are operands of dv and dk as they stand in registers
//            (FlashAttention-3, Shah et al. 2024); dS goes through shared memory for dq, of which each warpgroup has 64 columns. Two
//            warps of the third warpgroup copy: one fills a ring of two stages, the other adds dq to its sums.
// Launch     `attention_sm90_delta` <<<ceil(T Q / 16), 256>>>; `attention_sm90_backward` <<<blocks of keys x G x parts, 384>>>, 230528
//            bytes of dynamic shared memory; `attention_sm90_queries` <<<blocks of keys x Q, 256>>>. Key blocks come longest
//            first, and those of a span in ascending order. Tensor maps (bf16, 128-byte swizzle, zero fill; sizes innermost first):
//              q, do  {128, Q, T}, box {64, 1, 64}        k, v  {128, G, U}, box {64, 1, 128}
// Numerics   float sums; P and dS rounded to bf16 for the products. Blocks add to dq in turns, from the first keys of a span to the
//            last, and parts of a group to dk, dv in order: the same bytes each run. Tickets see to it that the blocks whose turn
//            comes before are running; queries are walked downwards and `together` heads side by side, so that a turn has come up
//            when it is asked for.
// Reference  CPUBackend.attentionBackward.
#include "flash.cuh"
#include "sm90.cuh"

constexpr int head_size = 128;
constexpr int keys = 128;
constexpr int queries = 64;
/// 64 columns of a tile; all boxes of the tensor copies are so wide.
constexpr int key_box = keys * 128;
constexpr int query_box = queries * 128;

// Shared memory.
constexpr int k_at = 0;
constexpr int v_at = k_at + 2 * key_box;
constexpr int stages_at = v_at + 2 * key_box;
constexpr int stage_bytes = 4 * query_box;
/// dS [queries, keys]: two buffers, so that a warpgroup may be a step ahead.
constexpr int scores_at = stages_at + 2 * stage_bytes;
constexpr int score_bytes = queries * keys * 2;
/// dq [queries, 128] in float.
constexpr int sums_at = scores_at + 2 * score_bytes;
constexpr int sum_bytes = queries * head_size * 4;
/// lse and delta of a stage's queries.
constexpr int statistics_at = sums_at + 2 * sum_bytes;
constexpr int statistic_bytes = 2 * queries * 4;
constexpr int items_at = statistics_at + 2 * statistic_bytes;
constexpr int item_bytes = 64;
constexpr int barriers_at = items_at + 2 * item_bytes;
static_assert(barriers_at + 14 * 8 <= 230784, "the launch's dynamic shared memory");

constexpr int producer_registers = 24;
constexpr int consumer_registers = 240;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");

// MARK: Products

#define PLACES(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PLACES_16(i) PLACES(i), PLACES(i + 4), PLACES(i + 8), PLACES(i + 12)
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 \
    NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/// d[64 x 64] (+)= a[64 x 16] b[16 x 64]; a has K inside, b has N inside if `b_transposed`.
template <bool b_transposed, bool accumulates> __device__ __forceinline__ void multiply(float (&d)[32], u64 a, u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, %32, %33, p, 1, 1, 0, %35;\n}"
                 : PLACES_16(0), PLACES_16(16)
                 : "l"(a), "l"(b), "n"(accumulates ? 1 : 0), "n"(b_transposed ? 1 : 0));
}
/// d[64 x 128] += a[64 x 16] b[16 x 128]; a stands in registers, b has N inside.
__device__ __forceinline__ void multiply(float (&d)[64], const u32* a, u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
                 : PLACES_16(0), PLACES_16(16), PLACES_16(32), PLACES_16(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
/// Keeps the compiler from moving what reads or writes accumulators across this place.
template <int count> __device__ __forceinline__ void hold(float (&d)[count]) {
#pragma unroll
    for (int i = 0; i < count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// d = rows of keys times queries^T: S^T or dP^T of 64 keys.
__device__ __forceinline__ void multiply_scores(float (&d)[32], u64 rows, u64 columns) {
    constexpr int step = 32 >> 4;
    multiply<false, false>(d, rows, columns);
#pragma unroll
    for (int i = 1; i < 8; ++i) {
        multiply<false, true>(d, rows + i / 4 * (key_box >> 4) + i % 4 * step, columns + i / 4 * (query_box >> 4) + i % 4 * step);
    }
    wgmma_commit();
}
/// d += P^T do or dS^T q.
__device__ __forceinline__ void multiply_keys(float (&d)[64], const u32 (&scores)[16], u64 rows) {
#pragma unroll
    for (int i = 0; i < 4; ++i) multiply(d, scores + 4 * i, rows + i * (2048 >> 4));
    wgmma_commit();
}
/// d = dS k, 64 columns of it.
__device__ __forceinline__ void multiply_queries(float (&d)[32], u64 scores, u64 rows) {
    multiply<true, false>(d, scores, rows);
#pragma unroll
    for (int i = 1; i < 8; ++i) {
        multiply<true, true>(d, scores + i / 4 * (query_box >> 4) + i % 4 * (32 >> 4), rows + i * (2048 >> 4));
    }
    wgmma_commit();
}

// MARK: Turns

/// A number that counts up; blocks hand it on.
struct Turn {
    int* place;
    int seen;

    /// Asks for the number; the answer is needed only in `wait`.
    __device__ __forceinline__ void ask(int* at) {
        place = at;
        asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(place) : "memory");
    }
    __device__ __forceinline__ void wait(int number) {
        while (seen < number) ask(place);
    }
    __device__ __forceinline__ void hand_on(int number) const {
        asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(place), "r"(number) : "memory");
    }
};

// MARK: What a block does

struct Arguments {
    const float *lse_QT, *delta_QT;
    const Work* works;
    bf16 *dk_UGD, *dv_UGD;
    float *query_sums, *key_sums;
    int* state;
    int blocks, parts, shares, together, tiles, T, Q, G;
    float scale;
};

/// Places and barriers in shared memory; `i` counts a block's items, steps or tiles of sums from its start.
struct Shared {
    u32 base;

    __device__ __forceinline__ u32 stage(u32 i) const { return base + stages_at + i % 2 * stage_bytes; }
    __device__ __forceinline__ u32 statistics(u32 i) const { return base + statistics_at + i % 2 * statistic_bytes; }
    __device__ __forceinline__ u32 scores(u32 i) const { return base + scores_at + i % 2 * score_bytes; }
    __device__ __forceinline__ u32 sums(u32 i) const { return base + sums_at + i % 2 * sum_bytes; }
    __device__ __forceinline__ u32 item(u32 i) const { return base + items_at + i % 2 * item_bytes; }
    __device__ __forceinline__ u32 barrier(int i) const { return base + barriers_at + 8 * i; }
    __device__ __forceinline__ u32 stage_full(u32 i) const { return barrier(i % 2); }
    __device__ __forceinline__ u32 stage_empty(u32 i) const { return barrier(2 + i % 2); }
    __device__ __forceinline__ u32 sums_full(u32 i) const { return barrier(4 + i % 2); }
    __device__ __forceinline__ u32 sums_empty(u32 i) const { return barrier(6 + i % 2); }
    __device__ __forceinline__ u32 item_full(u32 i) const { return barrier(8 + i % 2); }
    __device__ __forceinline__ u32 item_empty(u32 i) const { return barrier(10 + i % 2); }
    __device__ __forceinline__ u32 keys_full() const { return barrier(12); }
    __device__ __forceinline__ u32 keys_empty() const { return barrier(13); }

    __device__ __forceinline__ void start() const {
        for (int i = 0; i < 2; ++i) {
            barrier_init(stage_full(i), 33), barrier_init(stage_empty(i), 2);
            barrier_init(sums_full(i), 8), barrier_init(sums_empty(i), 1);
            barrier_init(item_full(i), 1), barrier_init(item_empty(i), 9);
        }
        barrier_init(keys_full(), 1), barrier_init(keys_empty(), 2);
        barrier_init_fence();
    }
};
/// When the `i`th of what has two places is complete; those who wait for a place to be empty wait for the other one.
__device__ __forceinline__ u32 phase(u32 i) { return i / 2 % 2; }

/// Keys of a span, a group of heads, and a part of that.
struct Item {
    Work work;
    int part, group, index, first_key;
    /// First queries of the first and last query block that see these keys.
    int first, last;
    /// Query i of the span sees the keys up to past + i.
    int past;

    /// Which one the `ticket`th is; heads of a part and group run side by side, `together` of them. By a whole warp; for the block.
    static __device__ __forceinline__ void publish(u32 place, int ticket, const Arguments& x) {
        const int lane = lane_id(), unit = ticket / (x.blocks * x.together) * x.together + ticket % x.together;
        const int index = ticket / x.together % x.blocks;
        int word = lane == 8 ? unit / x.G : lane == 9 ? unit % x.G : index;
        if (lane < 8) word = ((const int*)(x.works + index))[lane];
        if (lane == 1 && ticket >= x.blocks * x.parts * x.G) word = 0;
        if (lane < 11) store_shared32(place + 4 * lane, word);
    }
    /// False behind the last one.
    __device__ __forceinline__ bool take(u32 place) {
        const auto word = [=](int i) { return (int)load_shared32(place + 4 * i); };
        work.query = word(0), work.queries = word(1), work.key = word(2), work.keys = word(3);
        work.block = word(4), work.tile = word(5);
        part = word(8), group = word(9), index = word(10);
        past = work.keys - work.queries;
        first_key = work.block * keys;
        first = work.block == 0 ? 0 : max(0, first_key - past) / queries * queries;
        last = (work.queries - 1) / queries * queries;
        return work.queries > 0;
    }
    __device__ __forceinline__ int heads(const Arguments& x) const { return x.Q / x.G / x.parts; }
    __device__ __forceinline__ int steps(const Arguments& x) const { return heads(x) * ((last - first) / queries + 1); }
    /// The last key block that the queries from `query` on see: the last to add to their dq.
    __device__ __forceinline__ int last_block(int query) const {
        return max(0, past + min(query + queries, work.queries) - 1) / keys;
    }
};

/// A step: a head, and the first query of a block in the span. Queries go downwards, then heads upwards.
struct Step {
    int head, query;

    __device__ __forceinline__ Step(const Item& item, const Arguments& x)
        : head((item.group * x.parts + item.part) * item.heads(x)), query(item.last) {}
    __device__ __forceinline__ void advance(const Item& item) {
        query -= queries;
        if (query < item.first) {
            query = item.last;
            ++head;
        }
    }
};

/// One warp: takes items; keys and values of each, then queries, their gradients and statistics.
__device__ __forceinline__ void load(
    const Shared shared, const Arguments& x, const TensorMap& q, const TensorMap& k, const TensorMap& v, const TensorMap& dout) {
    const int lane = lane_id();
    int n = 0;
    for (int i = 0;; ++i) {
        const int ticket = __shfl_sync(0xffffffffu, lane == 0 ? atomicAdd(x.state, 1) : 0, 0);
        barrier_wait(shared.item_empty(i), phase(i) ^ 1);
        Item::publish(shared.item(i), ticket, x);
        __syncwarp();
        if (lane == 0) barrier_arrive(shared.item_full(i));
        Item item;
        if (!item.take(shared.item(i))) return;
        barrier_wait(shared.keys_empty(), i % 2 ^ 1);
        if (lane == 0) {
            barrier_expect(shared.keys_full(), 4 * key_box);
            const int row = item.work.key + item.first_key;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                tensor_load(shared.base + k_at + j * key_box, k, shared.keys_full(), 64 * j, item.group, row);
                tensor_load(shared.base + v_at + j * key_box, v, shared.keys_full(), 64 * j, item.group, row);
            }
        }
        Step now(item, x);
        for (const int end = n + item.steps(x); n < end; ++n, now.advance(item)) {
            barrier_wait(shared.stage_empty(n), phase(n) ^ 1);
            const int row = item.work.query + now.query;
            const u32 stage = shared.stage(n), full = shared.stage_full(n);
            if (lane == 0) {
                barrier_expect(full, stage_bytes);
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    tensor_load(stage + j * query_box, q, full, 64 * j, now.head, row);
                    tensor_load(stage + (2 + j) * query_box, dout, full, 64 * j, now.head, row);
                }
            }
            const u32 at = now.head * x.T + row;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int query = lane + 32 * j;
                const bool valid = now.query + query < item.work.queries;
                const u32 to = shared.statistics(n) + 4 * query;
                copy_async4(to, x.lse_QT + at + (valid ? query : 0), valid);
                copy_async4(to + 4 * queries, x.delta_QT + at + (valid ? query : 0), valid);
            }
            copy_async_arrive(full);
        }
    }
}

/// A tile of sums: added to `to` when the turn at `place` has come to `number`, which is then handed on; the first one is written.
struct SumTile {
    u32 place;
    int number;
    bool waits, hands_on;
    float* to;
    u32 bytes;
};

/// Adds tiles of sums in shared memory to those in global memory, each in the block's turn. The first turn writes them.
struct Adder {
    const Shared shared;
    int n = 0;
    /// The turns, and that of the tile before, to be handed on once it is added; 0: none.
    int* const state;
    u32 place = 0;
    int number = 0;

    __device__ __forceinline__ Adder(Shared shared, int* state) : shared(shared), state(state) {}
    /// Hands the turn on as soon as the tile before is added. Sums and turns are only ever touched in the L2 cache, where the copy is
    /// complete when the wait ends, so that no fence has to stand between them (one would cost 2 to 7 % of the kernel).
    __device__ __forceinline__ void hand_on() {
        if (place == 0) return;
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        Turn{state + place}.hand_on(number);
        place = 0;
    }
    __device__ __forceinline__ void add(const SumTile& tile) {
        Turn turn = {nullptr, tile.number};
        if (tile.waits) turn.ask(state + tile.place);
        hand_on();
        barrier_wait(shared.sums_full(n), phase(n));
        turn.wait(tile.number);
        if (tile.number == 0) {
            asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                         ::"l"(tile.to), "r"(shared.sums(n)), "r"(tile.bytes) : "memory");
        } else {
            asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;"
                         ::"l"(tile.to), "r"(shared.sums(n)), "r"(tile.bytes) : "memory");
        }
        asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
        barrier_arrive(shared.sums_empty(n++));
        if (tile.hands_on) place = tile.place, number = tile.number + 1;
    }
};

/// One thread: dq of every step, and dk and dv of an item where there are parts.
__device__ __forceinline__ void add_sums(const Shared shared, const Arguments& x) {
    Adder adder(shared, x.state);
    for (int i = 0;; ++i) {
        barrier_wait(shared.item_full(i), phase(i));
        Item item;
        const bool valid = item.take(shared.item(i));
        barrier_arrive(shared.item_empty(i));
        if (!valid) break;
        Step now(item, x);
#pragma unroll 1
        for (int left = item.steps(x), end = x.parts > 1 ? -4 : 0; left > end; --left) {
            SumTile tile;
            if (left > 0) {
                tile.place = 1 + (item.work.tile + now.query / queries) * x.Q + now.head;
                tile.number = item.work.block;
                tile.waits = tile.number > 0;
                tile.hands_on = tile.number < item.last_block(now.query);
                tile.to = x.query_sums + ((u64)now.head * x.T + item.work.query + now.query) * head_size;
                tile.bytes = min(queries, item.work.queries - now.query) * head_size * 4;
                now.advance(item);
            } else {
                // Four tiles of dk and dv, and one turn.
                const int index = (item.index * x.G + item.group) * x.shares + item.part % x.shares;
                tile.place = 1 + x.tiles * x.Q + index;
                tile.number = item.part / x.shares;
                tile.waits = left == 0 && tile.number > 0;
                tile.hands_on = left == -3 && item.part + x.shares < x.parts;
                tile.to = x.key_sums + (u64)(index * 4 - left) * keys * 64;
                tile.bytes = sum_bytes;
            }
            adder.add(tile);
        }
    }
    adder.hand_on();
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/// The two warpgroups that multiply wait for each other.
__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

/// P^T of the thread's places from S^T; `visible`: key r is seen by query c if r < visible + c, and c < count.
__device__ __forceinline__ void make_scores(float (&s)[32], u32 statistics, int visible, int count, float scale) {
    const int lane = lane_id();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float2 lse;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(lse.x), "=f"(lse.y) : "r"(statistics + j * 32 + lane % 4 * 8));
#pragma unroll
        for (int i = 0; i < 4; ++i) s[4 * j + i] = power2(fmaf(s[4 * j + i], scale, i % 2 ? -lse.y : -lse.x));
    }
    if (visible >= keys && count >= queries) return;
    const int row = threadIdx.x / 32 % 4 * 16 + threadIdx.x / 128 * 64 - 64 + lane / 4;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        const int r = row + i / 2 % 2 * 8, c = i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (r >= visible + c || c >= count) s[i] = 0;
    }
}

__device__ __forceinline__ void pack_scores(u32 (&to)[16], const float (&s)[32]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) to[i] = pack(s[2 * i], s[2 * i + 1]);
}

/// dS^T = P^T (dP^T - delta)
__device__ __forceinline__ void make_gradients(u32 (&ds)[16], const u32 (&p)[16], const float (&d)[32], u32 deltas) {
    const u32 at = deltas + lane_id() % 4 * 8;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float2 delta;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(delta.x), "=f"(delta.y) : "r"(at + j * 32));
#pragma unroll
        for (int i = 2 * j; i < 2 * j + 2; ++i) {
            ds[i] = pack(low(p[i]) * (d[2 * i] - delta.x), high(p[i]) * (d[2 * i + 1] - delta.y));
        }
    }
}

/// dS^T to the warpgroup's 64 keys of a [queries, keys] tile.
__device__ __forceinline__ void store_scores(u32 tile, const u32 (&s)[16]) {
    const int lane = lane_id(), warp = threadIdx.x / 32 % 4;
    const u32 row = tile + (threadIdx.x / 128 - 1) * query_box + (lane / 16 * 8 + lane % 8) * 128;
    const u32 at = row + ((2 * warp + lane / 8 % 2 ^ lane % 8) << 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) store_matrices_transposed(at + j * 2048, s[4 * j], s[4 * j + 1], s[4 * j + 2], s[4 * j + 3]);
}

/// The thread's places of 64 columns to a tile of floats. `row` is that of its row and its two columns; chunk c (16 bytes) of row r stands
/// at c ^ 2 (r % 4), so that all banks are written at once.
template <int pitch> __device__ __forceinline__ void store_sums(u32 row, const float* d, int r) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                         ::"r"(row + half * 8 * pitch + (32 * j ^ r % 4 * 32)), "f"(d[4 * j + 2 * half]), "f"(d[4 * j + 2 * half + 1])
                         : "memory");
        }
    }
    fence_async_proxy();
    __syncwarp();
}

/// dq [queries, 128]; rows count from the first query of all.
__device__ __forceinline__ void store_queries(u32 tile, const float (&d)[32], int first_row) {
    const int lane = lane_id(), row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    store_sums<512>(tile + row * 512 + (threadIdx.x / 128 - 1) * 256 + lane % 4 * 8, d, first_row + row);
}

/// 64 columns of dk or dv [keys, 64].
__device__ __forceinline__ void store_keys(u32 tile, const float* d) {
    const int lane = lane_id(), row = threadIdx.x / 32 * 16 - 64 + lane / 4;
    store_sums<256>(tile + row * 256 + lane % 4 * 8, d, row);
}

/// dk or dv, from the item's first key: += what the block has summed.
__device__ __forceinline__ void add_keys(bf16* to, int stride, const float (&d)[64], float scale, int count) {
    const int lane = lane_id(), row = threadIdx.x / 32 * 16 - 64 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (row + 8 * half >= count) break;
        u32* pairs = (u32*)(to + (u64)(row + 8 * half) * stride) + lane % 4;
        u32 old[16];
#pragma unroll
        for (int j = 0; j < 16; ++j) old[j] = pairs[4 * j];
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const float *x = d + 4 * j + 2 * half;
            pairs[4 * j] = pack(low(old[j]) + scale * x[0], high(old[j]) + scale * x[1]);
        }
    }
}

/// What the two warpgroups have summed of an item leaves them; `m` counts tiles of sums.
__device__ __forceinline__ void finish(
    const Shared shared, const Arguments& x, const Item& item, const float (&dk)[64], const float (&dv)[64], int& m) {
    if (x.parts == 1) {
        const int stride = x.G * head_size, count = item.work.keys - item.first_key;
        const u64 at = (u64)(item.work.key + item.first_key) * stride + item.group * head_size;
        add_keys(x.dk_UGD + at, stride, dk, x.scale, count);
        add_keys(x.dv_UGD + at, stride, dv, 1, count);
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j, ++m) {
        barrier_wait(shared.sums_empty(m), phase(m) ^ 1);
        store_keys(shared.sums(m), (j < 2 ? dk : dv) + j % 2 * 32);
        if (lane_id() == 0) barrier_arrive(shared.sums_full(m));
    }
}

/// A warpgroup that multiplies. Under way at once: dP while P is made, dv while dS is, dk while the other warpgroup's dS is waited for,
/// the next S while dq leaves.
__device__ __forceinline__ void multiply(const Shared shared, const Arguments& x) {
    const int other = threadIdx.x / 128 - 1;
    const u64 k_rows = operand(shared.base + k_at + other * query_box), v_rows = operand(shared.base + v_at + other * query_box);
    const u64 k_columns = operand(shared.base + k_at + other * key_box);
    const float scale = x.scale * 1.44269504089f;
    // Steps and tiles of sums so far.
    int n = 0, m = 0;
#pragma unroll 1
    for (int i = 0;; ++i) {
        float dk[64] = {}, dv[64] = {}, s[32], d[32];
        Item item;
        barrier_wait(shared.item_full(i), phase(i));
        if (!item.take(shared.item(i))) return;
        const int seen = item.past + 1 - item.first_key, end = n + item.steps(x);
        int query = item.last;
        barrier_wait(shared.keys_full(), i % 2);
        barrier_wait(shared.stage_full(n), phase(n));
        hold(dk), hold(dv);
        wgmma_fence();
        multiply_scores(s, k_rows, operand(shared.stage(n)));
#pragma unroll 1
        for (; n < end; ++n, ++m) {
            const u32 stage = shared.stage(n), statistics = shared.statistics(n);
            u32 p[16], ds[16];
            wgmma_wait<0>();
            hold(s);
            wgmma_fence();
            multiply_scores(d, v_rows, operand(stage + 2 * query_box));
            make_scores(s, statistics, seen + query, item.work.queries - query, scale);
            pack_scores(p, s);
            wgmma_fence();
            multiply_keys(dv, p, operand(stage + 2 * query_box, query_box));
            wgmma_wait<1>();
            hold(d);
            make_gradients(ds, p, d, statistics + 4 * queries);
            store_scores(shared.scores(n), ds);
            fence_async_proxy();
            wgmma_fence();
            multiply_keys(dk, ds, operand(stage, query_box));
            wgmma_wait<1>();
            hold(dv);
            meet();
            wgmma_fence();
            multiply_queries(d, operand(shared.scores(n)), k_columns);
            // The last step makes its own S again: one shape of the loop.
            const int next = n + 1 < end ? n + 1 : n;
            barrier_wait(shared.stage_full(next), phase(next));
            wgmma_fence();
            multiply_scores(s, k_rows, operand(shared.stage(next)));
            barrier_wait(shared.sums_empty(m), phase(m) ^ 1);
            wgmma_wait<1>();
            hold(d), hold(dk);
            release(shared.stage_empty(n));
            store_queries(shared.sums(m), d, item.work.query);
            if (lane_id() == 0) barrier_arrive(shared.sums_full(m));
            query = query == item.first ? item.last : query - queries;
        }
        wgmma_wait<0>();
        hold(s), hold(dk), hold(dv);
        release(shared.keys_empty());
        // Taken anew, to hold no registers through the products.
        item.take(shared.item(i));
        finish(shared, x, item, dk, dv, m);
        __syncwarp();
        if (lane_id() == 0) barrier_arrive(shared.item_empty(i));
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_sm90_backward(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
    const __grid_constant__ TensorMap dout, const float* lse_QT, const float* delta_QT, const Work* works, bf16* dk_UGD,
    bf16* dv_UGD, float* query_sums, float* key_sums, int* state, int blocks, int parts, int shares, int together,
    int tiles, int T, int Q, int G, float scale) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    const Shared shared = {shared_address(memory)};
    if (threadIdx.x == 0) shared.start();
    __syncthreads();
    const Arguments x = {lse_QT, delta_QT, works, dk_UGD, dv_UGD, query_sums, key_sums, state,
                         blocks, parts, shares, together, tiles, T, Q, G, scale};
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (threadIdx.x < 32) load(shared, x, q, k, v, dout);
        else if (threadIdx.x == 32) add_sums(shared, x);
    } else {
        register_increase<consumer_registers>();
        multiply(shared, x);
    }
}

// MARK: Before and after

/// lse = logSumExp / ln 2 and delta = <do, o>, turned to [Q, T]; and zeros in `state`. Half a warp takes a head of a row.
extern "C" __global__ void __launch_bounds__(256) attention_sm90_delta(
    const bf16* o_TQD, const bf16* do_TQD, const float* logSumExp_TQ, float* lse_QT, float* delta_QT, int* state,
    int state_count, int T, int Q) {
    begin_kernel();
    const u64 thread = blockIdx.x * 256ull + threadIdx.x, index = thread / 16;
    for (u64 i = thread; i < state_count; i += gridDim.x * 256ull) state[i] = 0;
    const bool valid = index < (u64)T * Q;
    float sum = 0;
    if (valid) {
        const Vector x = load128(o_TQD + thread * 8), y = load128(do_TQD + thread * 8);
        sum = low(x.x) * low(y.x) + high(x.x) * high(y.x) + low(x.y) * low(y.y) + high(x.y) * high(y.y)
            + low(x.z) * low(y.z) + high(x.z) * high(y.z) + low(x.w) * low(y.w) + high(x.w) * high(y.w);
    }
#pragma unroll
    for (int d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (valid && threadIdx.x % 16 == 0) {
        const u64 at = index % Q * T + index / Q;
        lse_QT[at] = logSumExp_TQ[index] * 1.44269504089f;
        delta_QT[at] = sum;
    }
}

/// Eight sums of a row, turned back from their order in shared memory. `place` counts such from the row's first, and `r` is the row as
/// `store_sums` counts.
struct Eight {
    float4 a, b;

    __device__ __forceinline__ void read(const float* row, int place, int r) {
        const float4* from = (const float4*)row + 2 * (place ^ r % 4);
        a = __ldcg(from), b = __ldcg(from + 1);
    }
    __device__ __forceinline__ void add(const Eight& x) {
        a.x += x.a.x, a.y += x.a.y, a.z += x.a.z, a.w += x.a.w;
        b.x += x.b.x, b.y += x.b.y, b.z += x.b.z, b.w += x.b.w;
    }
    /// scale times these, added to `x` and rounded.
    __device__ __forceinline__ Vector round(float scale, Vector x) const {
        return Vector{pack(low(x.x) + scale * a.x, high(x.x) + scale * a.y), pack(low(x.y) + scale * a.z, high(x.y) + scale * a.w),
                      pack(low(x.z) + scale * b.x, high(x.z) + scale * b.y), pack(low(x.w) + scale * b.z, high(x.w) + scale * b.w)};
    }
};

/// dq = scale times the sums; and where there are parts, dk += scale times theirs, dv += theirs. A block takes the keys of an
/// item of a group, 32 rows and 64 columns of dk or dv, or the queries whose last keys those are, of one head.
extern "C" __global__ void __launch_bounds__(256) attention_sm90_finish(
    const float* query_sums, const float* key_sums, const Work* works, bf16* dq_TQD, bf16* dk_UGD, bf16* dv_UGD, int blocks,
    int shares, int T, int Q, int G, float scale) {
    begin_kernel();
    const int index = blockIdx.x % blocks, head = blockIdx.x / blocks;
    const Work work = works[index];
    const int past = work.keys - work.queries, first_key = work.block * keys;
    if (head >= Q) {
        const int group = (head - Q) / 16, j = (head - Q) / 4 % 4, place = threadIdx.x % 8;
        const int r = (head - Q) % 4 * 32 + threadIdx.x / 8;
        if (first_key + r >= work.keys) return;
        const float* sums = key_sums + ((((u64)index * G + group) * shares * 4 + j) * keys + r) * 64;
        bf16* to = (j < 2 ? dk_UGD : dv_UGD) + ((u64)(work.key + first_key + r) * G + group) * head_size + j % 2 * 64 + place * 8;
        const Vector old = load128_once(to);
        Eight sum = {}, next;
#pragma unroll 4
        for (int share = 0; share < shares; ++share, sums += 4 * keys * 64) next.read(sums, place, r), sum.add(next);
        store128(to, sum.round(j < 2 ? scale : 1, old));
        return;
    }
    const auto last_block = [&](int query) { return max(0, past + min(query + queries, work.queries) - 1) / keys; };
    const int place = threadIdx.x % 16;
    for (int query = work.block == 0 ? 0 : max(0, first_key - past) / queries * queries; query < work.queries; query += queries) {
        if (last_block(query) > work.block) break;
        if (last_block(query) < work.block) continue;
        Eight sums[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = query + i * 16 + threadIdx.x / 16, row = work.query + r;
            if (r < work.queries) sums[i].read(query_sums + ((u64)head * T + row) * head_size, place, row);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = query + i * 16 + threadIdx.x / 16, row = work.query + r;
            if (r < work.queries) store128(dq_TQD + ((u64)row * Q + head) * head_size + place * 8, sums[i].round(scale, Vector{0, 0, 0, 0}));
        }
    }
}
