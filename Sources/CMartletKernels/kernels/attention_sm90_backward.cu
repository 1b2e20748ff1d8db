// Causal attention over packed sequences, backward, on Hopper: heads of 128.
//
// Math       P = exp(scale q k^T - logSumExp); dv += P^T do; dS = P (do v^T - <do, o>); dk += scale dS^T q; dq = scale dS k.
// Shapes     q, do [T, Q, 128], k, v, dk, dv [U, G, 128] bf16; lse, delta float [Q, T] (attention_sm90_finish.cu); sums float
//            [2, Q, T, 64] and [blocks of keys x G x shares, 4, 128, 64]; state int [1 + 2 (tiles of 64 queries x Q + blocks of
//            keys x G x shares)], zeros.
// Budget     1280 FLOPs a seen pair and head. A step of 128 keys and 64 queries is 2560 cycles of the tensor cores and 2944 of
//            shared memory: 256 KB that they read, 112 KB of copies.
// Design     an item is 128 keys of a span and a part of a group of heads; its queries are walked from the last to the first that
//            sees those keys. Two warpgroups multiply, 64 keys each: scores as their transpose, so that P and dS are operands of
//            dv and dk as they stand in registers (FlashAttention-3, Shah et al. 2024); dS goes through shared memory for dq, of
//            which each warpgroup has 64 columns. They begin their products in turns, so that one multiplies while the other makes
//            P and dS; dv, dk and dq are late therefore, and queries stay for three steps. Three warps of the third warpgroup copy:
//            one takes items and fills a ring, two add dq to its sums by the copy engine, and dk and dv where a group has parts,
//            each for one of the warpgroups that multiply.
// Launch     384 threads, one block a multiprocessor, or as many as there are items; 231168 bytes of dynamic shared memory. Key
//            blocks come longest first, and those of a span in ascending order. Tensor maps (bf16, 128-byte swizzle, zero fill;
//            sizes innermost first):
//              q, do  {128, Q, T}, box {64, 1, 64}        k, v  {128, G, U}, box {64, 1, 128}
// Numerics   float sums; P and dS rounded to bf16 for the products. Blocks add to dq in turns, from the first keys of a span to the
//            last; each share of dk and dv is added to by every `shares`th part of its group, in order: the same bytes each run.
//            Who waits for a turn waits for an item with a lower ticket, and a block takes its items in order: the lowest never
//            waits. `together` parts of groups run side by side, so that a turn has come when it is asked for.
// Reference  CPUBackend.attentionBackward.
#include "attention_sm90.cuh"
#include "turn.cuh"

/// The block starts with 384 x 168 registers; the three warpgroups share them anew.
constexpr int producer_registers = 24;
constexpr int consumer_registers = 240;
static_assert(producer_registers + 2 * consumer_registers <= 3 * 168, "the block's registers");

// MARK: Copies

/// The cluster's next item, the `i`th; its first block takes it, and tells the other one. By a whole warp.
__device__ __forceinline__ int next_ticket(const Shared shared, int i, int* state) {
    int ticket = 0;
    if (lane_id() == 0) {
        if (block_rank() == 0) {
            ticket = atomicAdd(state, 1);
            send(place_in(shared.ticket(i), 1), place_in(shared.ticket_full(i), 1), ticket);
        } else {
            barrier_expect(shared.ticket_full(i), 4);
            barrier_wait(shared.ticket_full(i), phase<4>(i));
            ticket = load_shared32(shared.ticket(i));
        }
    }
    return __shfl_sync(0xffffffffu, ticket, 0);
}

/// lse or delta of 64 queries from row `at` on, of which `count` are there.
__device__ __forceinline__ void load_statistics(u32 to, const float* from, u32 at, int count, u32 full) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const int query = lane_id() + 32 * j;
        const bool valid = query < count;
        copy_async4(to + 4 * query, from + at + (valid ? query : 0), valid);
    }
    copy_async_arrive(full);
}

/// One warp: takes items; keys and values of each, then queries, their gradients and statistics. Each block of the cluster fetches
/// half of the columns of queries and gradients for both.
__device__ __forceinline__ void load(
    const Shared shared, const Arguments& x, const TensorMap& q, const TensorMap& k, const TensorMap& v,
    const TensorMap& dout) {
    const int lane = lane_id(), rank = block_rank();
    int n = 0;
    for (int i = 0;; ++i) {
        const int ticket = next_ticket(shared, i, x.state);
        barrier_wait(shared.item_empty(i), phase<2>(i) ^ 1);
        Item::publish(shared.item(i), ticket, x);
        __syncwarp();
        if (lane == 0) barrier_arrive(shared.item_full(i));
        Item item;
        if (!item.take(shared.item(i))) return;
        barrier_wait(shared.keys_empty(), i % 2 ^ 1);
        if (lane == 0) {
            barrier_expect(shared.keys_full(), 5 * key_box);
            const int row = item.work.key + item.first_key, other = row + (1 - 2 * rank) * keys;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                tensor_load(shared.base + k_at + j * key_box, k, shared.keys_full(), 64 * j, item.group, row);
                tensor_load(shared.base + v_at + j * key_box, v, shared.keys_full(), 64 * j, item.group, row);
            }
            tensor_load(shared.base + other_k_at, k, shared.keys_full(), 64 * rank, item.group, other);
        }
        Step now(item, x);
        for (const int end = n + item.steps(x); n < end; ++n, now.advance(item)) {
            const int row = item.work.query + now.query, count = item.work.queries - now.query;
            const u32 at = now.head * x.T + row, half = shared.stage(n) + rank * query_box;
            barrier_wait(shared.q_empty(n), phase<2>(n) ^ 1);
            if (lane == 0) {
                barrier_expect(shared.q_full(n), 2 * query_box);
                tensor_load_both(half, q, shared.q_full(n), 64 * rank, now.head, row);
            }
            load_statistics(shared.statistics(n), x.lse_QT, at, count, shared.q_full(n));
            barrier_wait(shared.do_empty(n), phase<2>(n) ^ 1);
            if (lane == 0) {
                barrier_expect(shared.do_full(n), 2 * query_box);
                tensor_load_both(half + 2 * query_box, dout, shared.do_full(n), 64 * rank, now.head, row);
            }
            load_statistics(shared.statistics(n) + 4 * queries, x.delta_QT, at, count, shared.do_full(n));
        }
    }
}

/// The next item for one thread that needs no more of it than it takes here.
__device__ __forceinline__ bool take_item(const Shared shared, int i, Item& item) {
    barrier_wait(shared.item_full(i), phase<2>(i));
    const bool valid = item.take(shared.item(i));
    barrier_arrive(shared.item_empty(i));
    return valid;
}

/// One thread: dS of each warpgroup and step to the cluster's other block.
__device__ __forceinline__ void send_scores(const Shared shared, const Arguments& x) {
    const int other = 1 - block_rank();
    Item item;
    int n = 0;
    for (int i = 0; take_item(shared, i, item); ++i) {
        for (const int end = n + item.steps(x); n < end; ++n) {
            const u32 full = place_in(shared.scores_full(n), other);
#pragma unroll 1
            for (int group = 0; group < 2; ++group) {
                const u32 from = shared.scores(n) + group * query_box;
                barrier_wait(shared.scores_made(n, group), phase<2>(n));
                send_bytes(place_in(from + score_bytes, other), full, from, query_box);
            }
            barrier_expect(shared.scores_full(n), score_bytes);
        }
    }
}

/// `bytes` from shared memory to sums in global memory; or added to them.
__device__ __forceinline__ void add_bytes(float* to, u32 from, u32 bytes, bool adds) {
    if (adds) {
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;"
                     ::"l"(to), "r"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes) : "memory");
    }
}
/// The tile may be written anew.
__device__ __forceinline__ void wait_read() {
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void wait_added() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

/// One thread: the block's columns of dq of every step to their sums in global memory, in the block's turn. The first turn writes.
__device__ __forceinline__ void add_queries(const Shared shared, const Arguments& x) {
    Item item;
    int n = 0;
    // The turn of the tile before, to be handed on once it is added.
    int* before = nullptr;
    int number = 0;
    const auto hand_on = [&] {
        if (before == nullptr) return;
        wait_added();
        Turn{before}.hand_on(number);
        before = nullptr;
    };
    for (int i = 0; take_item(shared, i, item); ++i) {
        Step now(item, x);
#pragma unroll 1
        for (const int end = n + item.steps(x); n < end; ++n, now.advance(item)) {
            int* const place = x.state + 1 + 2 * ((item.work.tile + now.query / queries) * x.Q + now.head) + block_rank();
            const int block = item.work.block;
            Turn turn = {nullptr, block};
            if (block > 0) turn.ask(place);
            hand_on();
            barrier_wait(shared.sums_full(), phase<1>(n));
            turn.wait(block);
            add_bytes(x.query_sums + ((u64)(block_rank() * x.Q + now.head) * x.T + item.work.query + now.query) * 64,
                      shared.sums(), min(queries, item.work.queries - now.query) * 64 * 4, block > 0);
            wait_read();
            barrier_arrive(shared.sums_empty());
            if (block < item.last_block(now.query)) before = place, number = block + 1;
        }
    }
    hand_on();
    wait_added();
}

/// One thread: where groups have parts, the sums of dk and dv of every item to those in global memory, in the item's turn.
__device__ __forceinline__ void add_rows(const Shared shared, const Arguments& x) {
    Item item;
    int n = 0;
    for (int i = 0; take_item(shared, i, item); ++i) {
        n += item.steps(x);
        if (x.parts == 1) continue;
        const int share = item.share(x), number = item.part / x.shares;
        Turn turn = {x.state + 1 + 2 * x.tiles * x.Q + share, 0};
        if (number > 0) turn.ask(turn.place);
#pragma unroll 1
        for (int j = 0; j < 4; ++j) {
            const u32 from = shared.scores(n + j);
            float* const to = x.key_sums + ((u64)(share * 4 + j / 2 * 2) * keys + j % 2 * 64) * 64;
            barrier_wait(shared.rows_full(j % 2), phase<1>(j / 2));
            turn.wait(number);
            add_bytes(to, from, sum_bytes, number > 0);
            add_bytes(to + keys * 64, from + sum_bytes, sum_bytes, number > 0);
            wait_read();
            barrier_arrive_both(shared.scores_empty(n + j));
        }
        wait_added();
        if (item.part + x.shares < x.parts) turn.hand_on(number + 1);
    }
}

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
__device__ __forceinline__ void make_scores(float (&s)[32], const Statistics& lse, int visible, int count, float scale) {
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
    __syncwarp();
    if (lane_id() == 0) barrier_arrive(barrier);
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

/// P^T and dS^T of step n from its S^T and dP^T, which are under way; dS^T also to shared memory.
__device__ __forceinline__ void make_scores(
    float (&s)[32], float (&d)[32], u32 (&p)[16], u32 (&ds)[16], const Shared shared, int n, int group, int visible, int count,
    float scale) {
    const Statistics lse(shared.statistics(n));
    wgmma_wait<1>();
    hold(s);
    make_scores(s, lse, visible, count, scale);
    pack_scores(p, s);
    const Statistics delta(shared.statistics(n) + 4 * queries);
    wgmma_wait<0>();
    hold(d);
    make_gradients(ds, p, d, delta);
    barrier_wait(shared.scores_empty(n), phase<2>(n) ^ 1);
    store_scores(shared.scores(n), ds);
    give(shared.scores_made(n, group));
}

/// What a warpgroup multiplies: addresses of operands, and sums of the item.
struct Operands {
    u32 k_rows, v_rows, k_columns, other_k_columns;
};

/// The first products of a turn at the tensor cores: dk and dv of step n - 1, and before them, if `with_queries`, dq of step n - 2. The
/// last product, of dv, is still under way then.
template <bool with_queries> __device__ __forceinline__ void multiply_before(
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
    if (with_queries) {
        wgmma_wait<2>();
        hold(dq);
        release_all<2>(shared.scores_empty(n));
        barrier_wait(shared.sums_empty(), phase<1>(n) ^ 1);
        store_sums(shared.sums(), dq, first_row);
    }
    wgmma_wait<1>();
    hold(dk);
    give_cores(group);
    release_all<2>(shared.q_empty(n + 1));
}

/// A step: the turn's first products, and P and dS of step n.
template <bool with_queries> __device__ __forceinline__ void make_step(
    const Shared shared, const Operands& operands, int n, int group, float (&dk)[64], float (&dv)[64], u32 (&p)[16],
    u32 (&ds)[16], int first_row, int visible, int count, float scale) {
    float s[32], d[32];
    multiply_before<with_queries>(shared, operands, n, group, dk, dv, p, ds, first_row);
    barrier_wait(shared.q_full(n), phase<2>(n));
    wgmma_fence();
    multiply_scores(s, operands.k_rows, low_operand(shared.stage(n)));
    barrier_wait(shared.do_full(n), phase<2>(n));
    multiply_scores(d, operands.v_rows, low_operand(shared.stage(n) + 2 * query_box));
    if (with_queries) give(shared.sums_full());
    wgmma_wait<2>();
    hold(dv);
    release_all<2>(shared.do_empty(n + 1));
    make_scores(s, d, p, ds, shared, n, group, visible, count, scale);
}

/// A warpgroup that multiplies. While it has the tensor cores it makes dk and dv of the step before, and of every other step dq, two
/// steps late. S and dP of the step come behind, beside the other's products.
__device__ __forceinline__ void multiply(const Shared shared, const Arguments& x) {
    const int group = consumer_group();
    const Operands operands = {
        low_operand(shared.base + k_at + group * query_box), low_operand(shared.base + v_at + group * query_box),
        low_operand(shared.base + k_at + block_rank() * key_box), low_operand(shared.base + other_k_at)};
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
        // From this step on there is one two steps before.
        const int late = n + 2;
        int query = item.last;
        barrier_wait(shared.keys_full(), i % 2);
        barrier_wait(shared.q_full(n), phase<2>(n));
        barrier_wait(shared.do_full(n), phase<2>(n));
        take_cores(group);
        {
            float s[32], d[32];
            wgmma_fence();
            multiply_scores(s, operands.k_rows, low_operand(shared.stage(n)));
            multiply_scores(d, operands.v_rows, low_operand(shared.stage(n) + 2 * query_box));
            give_cores(group);
            make_scores(s, d, p, ds, shared, n, group, seen + query, item.work.queries - query, scale);
        }
        hold(dk), hold(dv);
#pragma unroll 1
        for (++n; n < end; ++n) {
            query = query == item.first ? item.last : query - queries;
            if (n % 2 == group && n >= late) {
                make_step<true>(shared, operands, n, group, dk, dv, p, ds, item.work.query, seen + query, item.work.queries - query, scale);
            } else {
                make_step<false>(shared, operands, n, group, dk, dv, p, ds, item.work.query, seen + query, item.work.queries - query, scale);
            }
        }
        if (n % 2 == group && n >= late) {
            multiply_before<true>(shared, operands, n, group, dk, dv, p, ds, item.work.query);
            wgmma_wait<0>();
            hold(dv);
            give(shared.sums_full());
        } else {
            multiply_before<false>(shared, operands, n, group, dk, dv, p, ds, item.work.query);
            wgmma_wait<0>();
            hold(dv);
        }
        release_all<2>(shared.do_empty(n + 1));
        // And dq of the last step, by the other one.
        if (n % 2 != group) {
            float dq[32];
            barrier_wait(shared.scores_full(n + 1), phase<2>(n + 1) ^ 1);
            take_cores(group);
            wgmma_fence();
            multiply_queries(dq, low_operand(shared.scores(n + 1)), operands.k_columns, operands.other_k_columns);
            give_cores(group);
            wgmma_wait<0>();
            hold(dq);
            release_all<2>(shared.scores_empty(n + 1));
            barrier_wait(shared.sums_empty(), phase<1>(n + 1) ^ 1);
            store_sums(shared.sums(), dq, item.work.query);
            give(shared.sums_full());
        } else {
            take_cores(group);
            give_cores(group);
        }
        release(shared.keys_empty());
        // Taken anew, to hold no registers through the products.
        item.take(shared.item(i));
        finish(shared, x, item, group, dk, dv, n);
        __syncwarp();
        if (lane_id() == 0) barrier_arrive(shared.item_empty(i));
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
