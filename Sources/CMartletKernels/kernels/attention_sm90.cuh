// The words of attention's backward pass on Hopper (attention_sm90_backward.cu): how an item of work is named, what stands where in
// shared memory, and the five products. Heads have 128 numbers.
#pragma once
#include "flash.cuh"
#include "sm90.cuh"

constexpr int head_size = 128;
/// Keys of a block, and of a cluster of two.
constexpr int keys = 128;
constexpr int cluster_keys = 2 * keys;
constexpr int queries = 64;
/// 64 columns of a tile; all boxes of the tensor copies are so wide.
constexpr int key_box = keys * 128;
constexpr int query_box = queries * 128;

// MARK: Shared memory

constexpr int k_at = 0;
constexpr int v_at = k_at + 2 * key_box;
/// The other block's keys, the columns of dq that this one sums.
constexpr int other_k_at = v_at + 2 * key_box;
/// Queries and their gradients, of two steps.
constexpr int stages_at = other_k_at + key_box;
constexpr int stage_bytes = 4 * query_box;
/// dS [queries, keys] of two steps, the block's own and behind it the other one's. At an item's end 64 rows of dk or dv in float.
constexpr int scores_at = stages_at + 2 * stage_bytes;
constexpr int score_bytes = queries * keys * 2;
/// 64 columns of dq in float.
constexpr int sums_at = scores_at + 4 * score_bytes;
constexpr int sum_bytes = queries * 64 * 4;
static_assert(sum_bytes == score_bytes, "sums of dk and dv stand where dS does");
/// lse and delta of a stage's queries.
constexpr int statistics_at = sums_at + sum_bytes;
constexpr int statistic_bytes = 2 * queries * 4;
constexpr int items_at = statistics_at + 2 * statistic_bytes;
constexpr int item_bytes = 64;
/// Tickets that the cluster's first block sends to the other one.
constexpr int tickets_at = items_at + 2 * item_bytes;
constexpr int barriers_at = tickets_at + 4 * 4;
static_assert(barriers_at + 30 * 8 <= 231168, "the launch's dynamic shared memory");

/// Of the two blocks of a cluster.
__device__ __forceinline__ int block_rank() { return blockIdx.x % 2; }

/// A warpgroup of either block arrives by one thread, and for racecheck's eyes all of the block's own threads do.
constexpr int step_readers = 4 + (RACECHECK ? 256 : 0);
/// A step's queries, or gradients, and their statistics are read.
__device__ __forceinline__ void release_step(u32 barrier) {
    if (RACECHECK) barrier_arrive(barrier);
    release_all<2>(barrier);
}

/// Places and barriers in shared memory; `i` counts items or steps from the start: both blocks of a cluster take the same.
struct Shared {
    u32 base;

    __device__ __forceinline__ u32 stage(u32 i) const { return base + stages_at + i % 2 * stage_bytes; }
    __device__ __forceinline__ u32 statistics(u32 i) const { return base + statistics_at + i % 2 * statistic_bytes; }
    __device__ __forceinline__ u32 scores(u32 i) const { return base + scores_at + i % 2 * 2 * score_bytes; }
    __device__ __forceinline__ u32 sums() const { return base + sums_at; }
    __device__ __forceinline__ u32 item(u32 i) const { return base + items_at + i % 2 * item_bytes; }
    __device__ __forceinline__ u32 ticket(u32 i) const { return base + tickets_at + i % 4 * 4; }
    __device__ __forceinline__ u32 barrier(int i) const { return base + barriers_at + 8 * i; }
    __device__ __forceinline__ u32 item_full(u32 i) const { return barrier(i % 2); }
    __device__ __forceinline__ u32 item_empty(u32 i) const { return barrier(2 + i % 2); }
    __device__ __forceinline__ u32 ticket_full(u32 i) const { return barrier(4 + i % 4); }
    __device__ __forceinline__ u32 keys_full() const { return barrier(8); }
    __device__ __forceinline__ u32 keys_empty() const { return barrier(9); }
    __device__ __forceinline__ u32 sums_full() const { return barrier(10); }
    __device__ __forceinline__ u32 sums_empty() const { return barrier(11); }
    /// Queries, and their gradients, are released by both blocks of the cluster, as each fetches a half of them for both.
    __device__ __forceinline__ u32 q_full(u32 i) const { return barrier(12 + i % 2); }
    __device__ __forceinline__ u32 q_empty(u32 i) const { return barrier(14 + i % 2); }
    __device__ __forceinline__ u32 do_full(u32 i) const { return barrier(16 + i % 2); }
    __device__ __forceinline__ u32 do_empty(u32 i) const { return barrier(18 + i % 2); }
    /// A warpgroup's dS of a step; that of both blocks; and when nobody in the cluster reads it any more.
    __device__ __forceinline__ u32 scores_made(u32 i, int group) const { return barrier(20 + i % 2 * 2 + group); }
    __device__ __forceinline__ u32 scores_full(u32 i) const { return barrier(24 + i % 2); }
    __device__ __forceinline__ u32 scores_empty(u32 i) const { return barrier(26 + i % 2); }
    /// A warpgroup's sums of dk or of dv.
    __device__ __forceinline__ u32 rows_full(int group) const { return barrier(28 + group); }

    __device__ __forceinline__ void start() const {
        for (int i = 0; i < 2; ++i) {
            barrier_init(item_full(i), signals), barrier_init(item_empty(i), 8 * signals + 3);
            barrier_init(q_full(i), 33), barrier_init(do_full(i), 33);
            barrier_init(q_empty(i), step_readers), barrier_init(do_empty(i), step_readers);
            barrier_init(scores_made(i, 0), 4 * signals), barrier_init(scores_made(i, 1), 4 * signals);
            barrier_init(scores_full(i), 1), barrier_init(scores_empty(i), 2);
            barrier_init(rows_full(i), 4 * signals);
        }
        for (int i = 0; i < 4; ++i) barrier_init(ticket_full(i), 1);
        barrier_init(keys_full(), 1), barrier_init(keys_empty(), 2);
        barrier_init(sums_full(), 4 * signals), barrier_init(sums_empty(), 1);
        barrier_init_fence();
    }
};
/// The parity of the barrier of the `i`th of what has `places` places; who waits for the place to be empty waits for the other one.
template <int places> __device__ __forceinline__ u32 phase(u32 i) { return i / places % 2; }

// MARK: Work

/// What the kernel is called with.
struct Arguments {
    const float *lse_QT, *delta_QT;
    const Work* works;
    bf16 *dk_UGD, *dv_UGD;
    float *query_sums, *key_sums;
    int* state;
    int blocks, parts, shares, together, tiles, T, Q, G;
    float scale;
};

/// An item of work of a cluster: 256 keys of a span, of which each block has 128, a group of heads, and a part of those.
struct Item {
    Work work;
    int part, group, index, first_key;
    /// First queries of the first and last query block that see the cluster's keys.
    int first, last;
    /// Query i of the span sees the keys up to past + i.
    int past;

    /// For a block, by a whole warp: which one the `ticket`th is. Parts of groups run side by side, `together` of them.
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
        const int key = work.block * cluster_keys;
        first_key = key + block_rank() * keys;
        first = work.block == 0 ? 0 : max(0, key - past) / queries * queries;
        last = (work.queries - 1) / queries * queries;
        return work.queries > 0;
    }
    __device__ __forceinline__ int heads(const Arguments& x) const { return x.Q / x.G / x.parts; }
    __device__ __forceinline__ int steps(const Arguments& x) const { return heads(x) * ((last - first) / queries + 1); }
    /// The last of a span's blocks of 256 keys that the queries from `query` on see: the last to add to their dq.
    __device__ __forceinline__ int last_block(int query) const {
        return max(0, past + min(query + queries, work.queries) - 1) / cluster_keys;
    }
    /// Of the block's share of dk and dv.
    __device__ __forceinline__ int share(const Arguments& x) const {
        return ((2 * index + block_rank()) * x.G + group) * x.shares + part % x.shares;
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

// MARK: Products

/// The lower half of what `operand` makes (sm90.cuh); the upper one is 0x40000040 for all, and so no register's business. (Bits 24
/// and up of an address say which block of a cluster it is in, and must not get into the distance.)
__device__ __forceinline__ u32 low_operand(u32 address, u32 leading = 16) {
    return (address & 0x3ffff) >> 4 | leading >> 4 << 16;
}

#define PLACES(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PLACES_16(i) PLACES(i), PLACES(i + 4), PLACES(i + 8), PLACES(i + 12)
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 \
    NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/// d[64 x 64] (+)= a[64 x 16] b[16 x 64]; a has K inside, b has N inside if `b_transposed`.
template <bool b_transposed, bool accumulates> __device__ __forceinline__ void multiply(float (&d)[32], u32 a, u32 b) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %34, 0;\n"
                 "mov.b64 a, {%32, 0x40000040};\nmov.b64 b, {%33, 0x40000040};\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, a, b, p, 1, 1, 0, %35;\n}"
                 : PLACES_16(0), PLACES_16(16)
                 : "r"(a), "r"(b), "n"(accumulates ? 1 : 0), "n"(b_transposed ? 1 : 0));
}
/// d[64 x 128] += a[64 x 16] b[16 x 128]; a stands in registers, b has N inside.
__device__ __forceinline__ void multiply(float (&d)[64], const u32* a, u32 b) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.eq.u32 p, 0, 0;\nmov.b64 b, {%68, 0x40000040};\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, "
                 "{%64, %65, %66, %67}, b, p, 1, 1, 1;\n}"
                 : PLACES_16(0), PLACES_16(16), PLACES_16(32), PLACES_16(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));
}
/// Keeps the compiler from moving what reads or writes accumulators across this place.
template <int count> __device__ __forceinline__ void hold(float (&d)[count]) {
#pragma unroll
    for (int i = 0; i < count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// d = rows of keys times queries^T: S^T or dP^T of 64 keys.
__device__ __forceinline__ void multiply_scores(float (&d)[32], u32 rows, u32 columns) {
    multiply<false, false>(d, rows, columns);
#pragma unroll
    for (int i = 1; i < 8; ++i) {
        const int half = i / 4, step = i % 4 * (32 >> 4);
        multiply<false, true>(d, rows + half * (key_box >> 4) + step, columns + half * (query_box >> 4) + step);
    }
    wgmma_commit();
}
/// d += P^T do or dS^T q.
__device__ __forceinline__ void multiply_keys(float (&d)[64], const u32 (&scores)[16], u32 rows) {
#pragma unroll
    for (int i = 0; i < 4; ++i) multiply(d, scores + 4 * i, rows + i * (2048 >> 4));
    wgmma_commit();
}
/// d = dS k, 64 columns of it, over the keys of both blocks.
__device__ __forceinline__ void multiply_queries(float (&d)[32], u32 scores, u32 k, u32 other_k) {
    multiply<true, false>(d, scores, k);
#pragma unroll
    for (int i = 1; i < 16; ++i) {
        const u32 columns = scores + i / 4 * (query_box >> 4) + i % 4 * (32 >> 4);
        multiply<true, true>(d, columns, (i < 8 ? k : other_k) + i % 8 * (2048 >> 4));
    }
    wgmma_commit();
}
