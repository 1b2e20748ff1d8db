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

/// One warp: takes items; keys and values of each, then queries, their gradients and statistics.
__device__ __forceinline__ void load(
    const Shared shared, const Arguments& x, const TensorMap& q, const TensorMap& k, const TensorMap& v,
    const TensorMap& dout) {
    const int lane = lane_id();
    int n = 0;
    for (int i = 0;; ++i) {
        const int ticket = __shfl_sync(0xffffffffu, lane == 0 ? atomicAdd(x.state, 1) : 0, 0);
        barrier_wait(shared.item_empty(i), phase<2>(i) ^ 1);
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
            barrier_wait(shared.stage_empty(n), phase<stages>(n) ^ 1);
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

/// A tile of sums, which is added to `to` when the turn at `place` has come to `number`; the first one is written.
struct SumTile {
    u32 place;
    int number;
    bool waits, hands_on;
    float* to;
    u32 bytes;
};

/// Adds a warpgroup's tiles of sums in shared memory to those in global memory, each in the block's turn. The first turn writes
/// them.
struct Adder {
    const Shared shared;
    const int group;
    int n = 0;
    /// The turns, and that of the tile before, to be handed on once it is added; 0: none.
    int* const state;
    u32 place = 0;
    int number = 0;

    __device__ __forceinline__ Adder(Shared shared, int group, int* state) : shared(shared), group(group), state(state) {}
    /// Hands the turn on as soon as the tile before is added.
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
        barrier_wait(shared.sums_full(group), phase<1>(n));
        turn.wait(tile.number);
        if (tile.number == 0) {
            asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                         ::"l"(tile.to), "r"(shared.sums(group)), "r"(tile.bytes) : "memory");
        } else {
            asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;"
                         ::"l"(tile.to), "r"(shared.sums(group)), "r"(tile.bytes) : "memory");
        }
        asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
        barrier_arrive(shared.sums_empty(group));
        ++n;
        if (tile.hands_on) place = tile.place, number = tile.number + 1;
    }
};

/// One thread for each warpgroup: its columns of dq of every step, and its keys of dk and dv of an item where there are parts.
__device__ __forceinline__ void add_sums(const Shared shared, const Arguments& x, int group) {
    Adder adder(shared, group, x.state);
    for (int i = 0;; ++i) {
        barrier_wait(shared.item_full(i), phase<2>(i));
        Item item;
        const bool valid = item.take(shared.item(i));
        barrier_arrive(shared.item_empty(i));
        if (!valid) break;
        Step now(item, x);
#pragma unroll 1
        for (int left = item.steps(x), end = x.parts > 1 ? -4 : 0; left > end; --left) {
            SumTile tile;
            if (left > 0) {
                tile.place = 1 + 2 * ((item.work.tile + now.query / queries) * x.Q + now.head) + group;
                tile.number = item.work.block;
                tile.waits = tile.number > 0;
                tile.hands_on = tile.number < item.last_block(now.query);
                tile.to = x.query_sums + ((u64)(group * x.Q + now.head) * x.T + item.work.query + now.query) * 64;
                tile.bytes = min(queries, item.work.queries - now.query) * 64 * 4;
                now.advance(item);
            } else {
                // Four tiles of dk and dv, and one turn.
                const int index = (item.index * x.G + item.group) * x.shares + item.part % x.shares;
                tile.place = 1 + 2 * (x.tiles * x.Q + index) + group;
                tile.number = item.part / x.shares;
                tile.waits = left == 0 && tile.number > 0;
                tile.hands_on = left == -3 && item.part + x.shares < x.parts;
                tile.to = x.key_sums + ((u64)(index * 4 - left) * keys + 64 * group) * 64;
                tile.bytes = sum_bytes;
            }
            adder.add(tile);
        }
    }
    adder.hand_on();
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// MARK: Products

/// The two warpgroups that multiply begin their products in turns. What one has written before it gives the tensor cores away, the
/// other one sees; and its dq is made, so that the tile of dS that it was made of may be written anew.
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

/// The thread's places of 64 columns to the warpgroup's tile of floats, when it is empty; rows count from `first_row`, `m` counts
/// tiles. Chunk c (16 bytes) of row r stands at c ^ 2 (r % 4), so that all banks are written at once.
__device__ __forceinline__ void store_sums(const Shared shared, int group, int m, const float* d, int first_row) {
    const int lane = lane_id(), row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    const u32 at = shared.sums(group) + row * 256 + lane % 4 * 8, swizzle = (first_row + row) % 4 * 32;
    barrier_wait(shared.sums_empty(group), phase<1>(m) ^ 1);
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
/// Gives the tile to the copy engine.
__device__ __forceinline__ void send_sums(const Shared shared, int group) {
    fence_async_proxy();
    __syncwarp();
    if (lane_id() == 0) barrier_arrive(shared.sums_full(group));
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

/// What a warpgroup has summed of an item leaves it; `m` counts tiles of sums.
__device__ __forceinline__ void finish(
    const Shared shared, const Arguments& x, const Item& item, int group, const float (&dk)[64], const float (&dv)[64],
    int& m) {
    if (x.parts == 1) {
        const int stride = x.G * head_size, count = item.work.keys - item.first_key;
        const u64 at = (u64)(item.work.key + item.first_key) * stride + item.group * head_size;
        add_keys(x.dk_UGD + at, stride, dk, x.scale, count);
        add_keys(x.dv_UGD + at, stride, dv, 1, count);
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        store_sums(shared, group, m++, (j < 2 ? dk : dv) + j % 2 * 32, 0);
        send_sums(shared, group);
    }
}

/// P^T and dS^T of a step from its S^T and dP^T, which are under way; dS^T also to shared memory.
__device__ __forceinline__ void make_step(
    float (&s)[32], float (&d)[32], u32 (&p)[16], u32 (&ds)[16], u32 statistics, u32 scores, int visible, int count,
    float scale) {
    const Statistics lse(statistics);
    wgmma_wait<1>();
    hold(s);
    make_scores(s, lse, visible, count, scale);
    pack_scores(p, s);
    const Statistics delta(statistics + 4 * queries);
    wgmma_wait<0>();
    hold(d);
    make_gradients(ds, p, d, delta);
    store_scores(scores, ds);
    fence_async_proxy();
}

/// A warpgroup that multiplies. While it has the tensor cores it makes dv and dk of the step before, and dq of the newest step
/// whose dS both have made: two steps before, or by the second warpgroup one. S and dP of the step come behind, beside the other's
/// products.
__device__ __forceinline__ void multiply(const Shared shared, const Arguments& x) {
    const int group = consumer_group(), lag = 2 - group;
    const u32 k_rows = low_operand(shared.base + k_at + group * query_box);
    const u32 v_rows = low_operand(shared.base + v_at + group * query_box);
    const u32 k_columns = low_operand(shared.base + k_at + group * key_box);
    const float scale = x.scale * 1.44269504089f;
    // Steps and tiles of sums so far.
    int n = 0, m = 0;
    if (group == 1) give_cores(1);
#pragma unroll 1
    for (int i = 0;; ++i) {
        float dk[64] = {}, dv[64] = {}, s[32], d[32];
        u32 p[16], ds[16];
        Item item;
        barrier_wait(shared.item_full(i), phase<2>(i));
        if (!item.take(shared.item(i))) return;
        const int seen = item.past + 1 - item.first_key, end = n + item.steps(x);
        int query = item.last, skipped = lag - 1;
        barrier_wait(shared.keys_full(), i % 2);
        barrier_wait(shared.stage_full(n), phase<stages>(n));
        hold(dk), hold(dv);
        take_cores(group);
        wgmma_fence();
        multiply_scores(s, k_rows, low_operand(shared.stage(n)));
        multiply_scores(d, v_rows, low_operand(shared.stage(n) + 2 * query_box));
        give_cores(group);
        make_step(s, d, p, ds, shared.statistics(n), shared.scores(n), seen + query, item.work.queries - query, scale);
#pragma unroll 1
        for (++n; n < end; ++n) {
            query = query == item.first ? item.last : query - queries;
            const u32 before = shared.stage(n + stages - 1), stage = shared.stage(n);
            barrier_wait(shared.stage_full(n), phase<stages>(n));
            take_cores(group);
            wgmma_fence();
            multiply_queries(d, low_operand(shared.scores(n + lag)), k_columns);
            multiply_keys(dv, p, low_operand(before + 2 * query_box, query_box));
            multiply_keys(dk, ds, low_operand(before, query_box));
            wgmma_wait<2>();
            hold(d);
            // There is no step before the first: what was made of its dS is thrown away.
            if (--skipped < 0) store_sums(shared, group, m++, d, item.work.query);
            wgmma_wait<1>();
            hold(dv);
            give_cores(group);
            wgmma_fence();
            multiply_scores(s, k_rows, low_operand(stage));
            multiply_scores(d, v_rows, low_operand(stage + 2 * query_box));
            if (skipped < 0) send_sums(shared, group);
            wgmma_wait<2>();
            hold(dk);
            release(shared.stage_empty(n + stages - 1));
            make_step(s, d, p, ds, shared.statistics(n), shared.scores(n), seen + query, item.work.queries - query, scale);
        }
        const u32 before = shared.stage(n + stages - 1);
        take_cores(group);
        wgmma_fence();
        multiply_queries(d, low_operand(shared.scores(n + lag)), k_columns);
        multiply_keys(dv, p, low_operand(before + 2 * query_box, query_box));
        multiply_keys(dk, ds, low_operand(before, query_box));
        wgmma_wait<2>();
        hold(d);
        if (--skipped < 0) store_sums(shared, group, m++, d, item.work.query);
        give_cores(group);
        if (skipped < 0) send_sums(shared, group);
        take_cores(group);
        wgmma_fence();
        multiply_queries(d, low_operand(shared.scores(n + 1)), k_columns);
        give_cores(group);
        wgmma_wait<0>();
        hold(d), hold(dk), hold(dv);
        release(shared.stage_empty(n + stages - 1));
        release(shared.keys_empty());
        if (group == 0) {
            store_sums(shared, group, m++, d, item.work.query);
            send_sums(shared, group);
        }
        // Taken anew, to hold no registers through the products.
        item.take(shared.item(i));
        finish(shared, x, item, group, dk, dv, m);
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
        else if (threadIdx.x % 32 == 0 && threadIdx.x < 96) add_sums(shared, x, threadIdx.x / 32 - 1);
    } else {
        register_increase<consumer_registers>();
        multiply(shared, x);
    }
}
