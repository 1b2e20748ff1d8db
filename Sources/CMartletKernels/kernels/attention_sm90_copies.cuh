// What the third warpgroup of attention's backward pass on Hopper does (attention_sm90_backward.cu), a warp each: items, queries and
// keys into shared memory; dS to the cluster's other block; sums out of it.
#pragma once
#include "attention_sm90.cuh"
#include "turn.cuh"

// MARK: In

/// The cluster's next item, the `i`th; its first block takes it, and tells the other one. By a whole warp. (Who fetches a step waits
/// until both blocks are done with that two before, so that the other block is less than four items behind.)
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
        if (RACECHECK) store_shared32(to + 4 * query, valid ? __float_as_uint(from[at + query]) : 0);
        else copy_async4(to + 4 * query, from + at + (valid ? query : 0), valid);
    }
    if (RACECHECK) barrier_arrive(full);
    else copy_async_arrive(full);
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
        signal(shared.item_full(i));
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

// MARK: Out

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
