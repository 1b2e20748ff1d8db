// Causal attention over packed sequences, backward, on Hopper: heads of 128.
//
// Math       P = exp(scale q k^T - logSumExp); dv += P^T do; dS = P (do v^T - <do, o>); dk += scale dS^T q; dq = scale dS k.
// Shapes     q, do [T, Q, 128], k, v, dk, dv [U, G, 128] bf16; lse, delta float [Q, T] (attention_sm90_finish.cu); sums float
//            [2, Q, T, 64] and [blocks of 256 keys, 2, G, shares, 4, 128, 64]; state int [1 + 2 (tiles of 64 queries x Q +
//            blocks of 256 keys x G x shares)], zeros.
// Budget     1280 FLOPs a seen pair and head. A step of 128 keys and 64 queries is 2560 cycles of the tensor cores and 2944 of
//            shared memory: 256 KB that they read, 112 KB of copies. From and to the L2 cache go 16 KB of queries and gradients and
//            16 KB of sums, half of what a block by itself would need: that costs joules, which is what binds.
// Design     an item is 256 keys of a span and a part of a group of heads, for a cluster of two blocks with 128 keys each; both
//            walk its queries together, from the last to the first that sees those keys, and each fetches half of their columns
//            for both. In a block two warpgroups multiply, 64 keys each: scores as their transpose, so that P and dS are operands
//            of dv and dk as they stand in registers (FlashAttention-3, Shah et al. 2024). dS goes through shared memory, the
//            block's own and by the copy engine the other one's, so that each block makes half of dq's columns over all 256 keys;
//            its warpgroups do so in turns, one every other step. They begin their products in turns, so that one multiplies while
//            the other makes P and dS; dk and dv are a step late therefore, and dq two, when the other block's dS has come. Four
//            warps of the third warpgroup copy (attention_sm90_copies.cuh): one takes items and fetches, one sends dS, one adds dq
//            to its sums by the copy engine, and one dk and dv where a group has parts.
// Launch     384 threads, clusters of two blocks, one block a multiprocessor, or as many as items need; 231168 bytes of dynamic
//            shared memory. Key blocks come longest first, and those of a span in ascending order. Tensor maps (bf16, 128-byte
//            swizzle, zero fill; sizes innermost first):
//              q, do  {128, Q, T}, box {64, 1, 64}        k, v  {128, G, U}, box {64, 1, 128}
// Numerics   float sums; P and dS rounded to bf16 for the products. Clusters add to dq in turns, from the first keys of a span to
//            the last; each share of dk and dv is added to by every `shares`th part of its group, in order: the same bytes each
//            run. Who waits for a turn waits for an item with a lower ticket, and a cluster takes its items in order: the lowest never
//            waits. `together` parts of groups run side by side, so that a turn has come when it is asked for.
// Reference  CPUBackend.attentionBackward.
#include "attention_sm90_copies.cuh"

/// The block starts with 384 x 168 registers; the three warpgroups share them anew.
constexpr int producer_registers = 24;
constexpr int consumer_registers = 240;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");

// MARK: Products

/// The two warpgroups that multiply begin their products in turns.
__device__ __forceinline__ void take_cores(int group) { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); }
__device__ __forceinline__ void give_cores(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); }

/// lse or delta of the thread's queries, asked for before S or dP is waited for.
struct Statistics {
    float2 x[8];

    __device__ __forceinline__ explicit Statistics(u32 place) {
        const u32 at = place + lane_id() % 4 * 8;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x[j].x), "=f"(x[j].y) : "r"(at + j * 32));
        }
    }
};

/// P^T of the thread's places from S^T; `visible`: key r is seen by query c if r < visible + c, and c < count.
__device__ __forceinline__ void make_probabilities(float (&s)[32], const Statistics& lse, int visible, int count, float scale) {
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i] = power2(fmaf(s[i], scale, i % 2 ? -lse.x[i / 4].y : -lse.x[i / 4].x));
    if (visible >= keys && count >= queries) return;
    const int lane = lane_id(), row = threadIdx.x / 32 % 4 * 16 + threadIdx.x / 128 * 64 - 64 + lane / 4;
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
__device__ __forceinline__ void make_gradients(u32 (&ds)[16], const u32 (&p)[16], const float (&d)[32], const Statistics& delta) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        ds[i] = pack(low(p[i]) * (d[2 * i] - delta.x[i / 2].x), high(p[i]) * (d[2 * i + 1] - delta.x[i / 2].y));
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

/// The thread's places of 64 columns to a tile of floats; rows count from `first_row`. Chunk c (16 bytes) of row r stands at
/// c ^ 2 (r % 4), so that all banks are written at once.
__device__ __forceinline__ void store_sums(u32 tile, const float* d, int first_row) {
    const int lane = lane_id(), row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    const u32 at = tile + row * 256 + lane % 4 * 8, swizzle = (first_row + row) % 4 * 32;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float* x = d + 4 * j + 2 * half;
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                         ::"r"(at + half * 8 * 256 + (32 * j ^ swizzle)), "f"(x[0]), "f"(x[1]) : "memory");
        }
    }
}
/// Gives what the warp has written to the copy engine.
__device__ __forceinline__ void give(u32 barrier) {
    fence_async_proxy();
    signal(barrier);
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
            const float* x = d + 4 * j + 2 * half;
            pairs[4 * j] = pack(low(old[j]) + scale * x[0], high(old[j]) + scale * x[1]);
        }
    }
}

/// What a warpgroup has summed of an item leaves it; `n` steps are behind it. Sums of parts take four turns of dS's place.
__device__ __forceinline__ void finish(
    const Shared shared, const Arguments& x, const Item& item, int group, const float (&dk)[64], const float (&dv)[64],
    int n) {
    if (x.parts == 1) {
        const int stride = x.G * head_size, count = item.work.keys - item.first_key;
        const u64 at = (u64)(item.work.key + item.first_key) * stride + item.group * head_size;
        add_keys(x.dk_UGD + at, stride, dk, x.scale, count);
        add_keys(x.dv_UGD + at, stride, dv, 1, count);
        return;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const int place = n + 2 * j + group;
        barrier_wait(shared.scores_empty(place), phase<2>(place) ^ 1);
#pragma unroll
        for (int i = 0; i < 2; ++i) store_sums(shared.scores(place) + i * sum_bytes, (j == 0 ? dk : dv) + i * 32, 0);
        give(shared.rows_full(group));
    }
}

/// Addresses of what a warpgroup multiplies; columns are those of dq that the block sums.
struct Operands {
    u32 k_rows, v_rows, k_columns, other_k_columns;

    __device__ __forceinline__ Operands(const Shared shared, int group)
        : k_rows(low_operand(shared.base + k_at + group * query_box)),
          v_rows(low_operand(shared.base + v_at + group * query_box)),
          k_columns(low_operand(shared.base + k_at + block_rank() * key_box)),
          other_k_columns(low_operand(shared.base + other_k_at)) {}
};

/// P^T and dS^T of step n; dS^T also to shared memory, when nobody in the cluster reads what stood there two steps before.
__device__ __forceinline__ void make_scores(
    const Shared shared, const Operands& operands, int n, int group, u32 (&p)[16], u32 (&ds)[16], int visible, int count,
    float scale) {
    float s[32], d[32];
    barrier_wait(shared.q_full(n), phase<2>(n));
    wgmma_fence();
    multiply_scores(s, operands.k_rows, low_operand(shared.stage(n)));
    barrier_wait(shared.do_full(n), phase<2>(n));
    multiply_scores(d, operands.v_rows, low_operand(shared.stage(n) + 2 * query_box));
    const Statistics lse(shared.statistics(n));
    wgmma_wait<1>();
    hold(s);
    make_probabilities(s, lse, visible, count, scale);
    pack_scores(p, s);
    const Statistics delta(shared.statistics(n) + 4 * queries);
    wgmma_wait<0>();
    hold(d);
    make_gradients(ds, p, d, delta);
    barrier_wait(shared.scores_empty(n), phase<2>(n) ^ 1);
    store_scores(shared.scores(n), ds);
    give(shared.scores_made(n, group));
}

/// dq of step n - 2 to the tile of sums, behind products that are made meanwhile (`under_way` of them).
template <int under_way> __device__ __forceinline__ void hand_over(const Shared shared, int n, float (&dq)[32], int first_row) {
    wgmma_wait<under_way>();
    hold(dq);
    release_all<2>(shared.scores_empty(n));
    barrier_wait(shared.sums_empty(), phase<1>(n) ^ 1);
    store_sums(shared.sums(), dq, first_row);
}

/// A turn at the tensor cores: dk and dv of step n - 1, and before them, if it is the warpgroup's business, dq of step n - 2.
template <bool with_queries> __device__ __forceinline__ void make_sums(
    const Shared shared, const Operands& operands, int n, int group, float (&dk)[64], float (&dv)[64], const u32 (&p)[16],
    const u32 (&ds)[16], int first_row) {
    const u32 before = shared.stage(n + 1);
    float dq[32];
    if (with_queries) barrier_wait(shared.scores_full(n), phase<2>(n) ^ 1);
    take_cores(group);
    wgmma_fence();
    if (with_queries) multiply_queries(dq, low_operand(shared.scores(n)), operands.k_columns, operands.other_k_columns);
    multiply_keys(dk, ds, low_operand(before, query_box));
    multiply_keys(dv, p, low_operand(before + 2 * query_box, query_box));
    if (with_queries) hand_over<2>(shared, n, dq, first_row);
    wgmma_wait<1>();
    hold(dk);
    give_cores(group);
    release_step(shared.q_empty(n + 1));
    if (with_queries) give(shared.sums_full());
    // What comes next in the same warpgroup is slower if it is begun before dv is made.
    wgmma_wait<0>();
    hold(dv);
    release_step(shared.do_empty(n + 1));
}

/// A warpgroup that multiplies. S and dP of a step come behind its turn, beside the other warpgroup's products.
__device__ __forceinline__ void multiply(const Shared shared, const Arguments& x) {
    const int group = consumer_group();
    const Operands operands(shared, group);
    const float scale = x.scale * 1.44269504089f;
    // Steps so far.
    int n = 0;
    if (group == 1) give_cores(1);
#pragma unroll 1
    for (int i = 0;; ++i) {
        float dk[64] = {}, dv[64] = {};
        u32 p[16], ds[16];
        Item item;
        barrier_wait(shared.item_full(i), phase<2>(i));
        if (!item.take(shared.item(i))) return;
        const int seen = item.past + 1 - item.first_key, end = n + item.steps(x);
        // From here on there is a step two before.
        const int late = n + 2;
        int query = item.last;
        barrier_wait(shared.keys_full(), i % 2);
        hold(dk), hold(dv);
        // Neither begins an item before the other one has left that before: turns at dS's place are counted on it.
        take_cores(group);
        give_cores(group);
#pragma unroll 1
        for (;;) {
            make_scores(shared, operands, n, group, p, ds, seen + query, item.work.queries - query, scale);
            if (++n % 2 == group && n >= late) make_sums<true>(shared, operands, n, group, dk, dv, p, ds, item.work.query);
            else make_sums<false>(shared, operands, n, group, dk, dv, p, ds, item.work.query);
            if (n == end) break;
            query = query == item.first ? item.last : query - queries;
        }
        // dq of the last step is the other one's business.
        if (n % 2 != group) {
            float dq[32];
            barrier_wait(shared.scores_full(n + 1), phase<2>(n + 1) ^ 1);
            take_cores(group);
            wgmma_fence();
            multiply_queries(dq, low_operand(shared.scores(n + 1)), operands.k_columns, operands.other_k_columns);
            give_cores(group);
            hand_over<0>(shared, n + 1, dq, item.work.query);
            give(shared.sums_full());
        } else {
            take_cores(group);
            give_cores(group);
        }
        release(shared.keys_empty());
        // Taken anew, to hold no registers through the products.
        item.take(shared.item(i));
        finish(shared, x, item, group, dk, dv, n);
        signal(shared.item_empty(i));
    }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) attention_sm90_backward(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
    const __grid_constant__ TensorMap dout, const float* lse_QT, const float* delta_QT, const Work* works, bf16* dk_UGD,
    bf16* dv_UGD, float* query_sums, float* key_sums, int* state, int blocks, int parts, int shares, int together,
    int tiles, int T, int Q, int G, float scale) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    const Shared shared = {shared_address(memory)};
    if (threadIdx.x == 0) shared.start();
    cluster_barrier<2>();
    const Arguments x = {lse_QT, delta_QT, works, dk_UGD, dv_UGD, query_sums, key_sums, state,
                         blocks, parts, shares, together, tiles, T, Q, G, scale};
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        const int warp = threadIdx.x / 32;
        if (warp == 0) load(shared, x, q, k, v, dout);
        else if (lane_id() == 0) {
            if (warp == 1) add_queries(shared, x);
            else if (warp == 2) send_scores(shared, x);
            else add_rows(shared, x);
        }
        __syncwarp();
    } else {
        register_increase<consumer_registers>();
        multiply(shared, x);
    }
    // The other block may still read, write or arrive here.
    cluster_barrier<2>();
}
