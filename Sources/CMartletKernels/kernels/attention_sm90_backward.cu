// Causal attention over packed sequences, backward, on Hopper: heads of 128.
//
// Math       P = exp(scale q k^T - logSumExp); dv += P^T do; dS = P (do v^T - <do, o>); dk += scale dS^T q; dq = scale dS k.
// Shapes     q, do [T, Q, 128], k, v, dk, dv [U, G, 128] bf16; lse, delta float [Q, T] (attention_sm90_finish.cu); sums float
//            [Q, T, 128] and [blocks of keys x G x shares, 4, 128, 64]; state int [1 + tiles of 64 queries x Q + blocks of keys
//            x G x shares], zeros.
// Budget     1280 FLOPs a seen pair and head. A step of 128 keys and 64 queries is 2560 cycles of the tensor cores and 2944 of
//            shared memory: 256 KB that they read, 112 KB of copies.
// Design     an item is 128 keys of a span and a part of a group of heads; its queries are walked from the last to the first that
//            sees those keys. Two warpgroups multiply, 64 keys each: scores as their transpose, so that P and dS are operands of
//            dv and dk as they stand in registers (FlashAttention-3, Shah et al. 2024); dS goes through shared memory for dq, of
//            which each warpgroup has 64 columns. Two warps of the third warpgroup copy: one takes items and fills a ring of two
//            stages, the other adds dq to its sums by the copy engine, and dk and dv where a group has parts.
// Launch     384 threads, one block a multiprocessor, or as many as there are items; 230784 bytes of dynamic shared memory. Key
//            blocks come longest first, and those of a span in ascending order. Tensor maps (bf16, 128-byte swizzle, zero fill;
//            sizes innermost first):
//              q, do  {128, Q, T}, box {64, 1, 64}        k, v  {128, G, U}, box {64, 1, 128}
// Numerics   float sums; P and dS rounded to bf16 for the products. Blocks add to dq in turns, from the first keys of a span to the
//            last; each share of dk and dv is added to by every `shares`th part of its group, in order: the same bytes each run.
//            Who waits for a turn waits for an item with a lower ticket, and a block takes its items in order: the lowest never
//            waits. `together` parts of groups run side by side, so that a turn has come when it is asked for.
// Reference  CPUBackend.attentionBackward.
#include "attention_sm90.cuh"

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

/// A number that counts up; blocks hand it on.
struct Turn {
    int* place;
    int seen;

    /// Asks for the number; the answer is needed only in `wait`.
    __device__ __forceinline__ void ask(int* at) {
        place = at;
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(place) : "memory");
    }
    __device__ __forceinline__ void wait(int number) {
        while (seen < number) ask(place);
    }
    __device__ __forceinline__ void hand_on(int number) const {
        asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(place), "r"(number) : "memory");
    }
};

/// A tile of sums, which is added to `to` when the turn at `place` has come to `number`; the first one is written.
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

// MARK: Products

/// The two warpgroups that multiply wait for each other.
__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

/// P^T of the thread's places from S^T; `visible`: key r is seen by query c if r < visible + c, and c < count.
__device__ __forceinline__ void make_scores(float (&s)[32], u32 statistics, int visible, int count, float scale) {
    const int lane = lane_id();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float2 lse;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(lse.x), "=f"(lse.y) : "r"(statistics + j * 32 + lane % 4 * 8));
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

/// The thread's places of 64 columns to a tile of floats: `at` is that of its first two, in row r. Chunk c (16 bytes) of a row
/// stands at c ^ 2 (r % 4), so that all banks are written at once.
template <int pitch> __device__ __forceinline__ void store_sums(u32 at, const float* d, int r) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float* x = d + 4 * j + 2 * half;
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                         ::"r"(at + half * 8 * pitch + (32 * j ^ r % 4 * 32)), "f"(x[0]), "f"(x[1]) : "memory");
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
            const float* x = d + 4 * j + 2 * half;
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

/// A warpgroup that multiplies. Under way at once: dP while P is made, dv while dS is, dk while the other warpgroup's dS is waited
/// for, the next S while dq leaves.
__device__ __forceinline__ void multiply(const Shared shared, const Arguments& x) {
    const int other = threadIdx.x / 128 - 1;
    const u64 k_rows = operand(shared.base + k_at + other * query_box);
    const u64 v_rows = operand(shared.base + v_at + other * query_box);
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
