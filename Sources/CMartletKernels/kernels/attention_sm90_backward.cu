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
constexpr int barriers_at = statistics_at + 2 * statistic_bytes;
constexpr int ticket_at = barriers_at + 9 * 8;
static_assert(ticket_at + 4 <= 230528, "the launch's dynamic shared memory");

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
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(place) : "memory");
    }
    __device__ __forceinline__ void wait(int number) {
        while (seen < number) ask(place);
    }
    /// After this thread's writes so far, and those it knows of.
    __device__ __forceinline__ void hand_on(int number) const {
        asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(place), "r"(number) : "memory");
    }
};

// MARK: What a block does

struct Arguments {
    const float *lse_QT, *delta_QT;
    bf16 *dk_UGD, *dv_UGD;
    float *query_sums, *key_sums;
    int* state;
    int blocks, parts, tiles, T, Q, G;
    float scale;
};

/// What a thread knows of its block.
struct Block {
    u32 shared;
    Work work;
    int part, group, index, first_key;
    /// First queries of the first and last query block that see these keys.
    int first, last;
    /// Query i of the span sees the keys up to past + i.
    int past;
    int first_head, steps;

    __device__ __forceinline__ Block(u32 shared, const Arguments& x, const Work* works, int together) : shared(shared) {
        const int ticket = load_shared32(shared + ticket_at);
        // Heads of a part and group run side by side, `together` of them.
        const int unit = ticket / (x.blocks * together) * together + ticket % together;
        index = ticket / together % x.blocks;
        part = unit / x.G, group = unit % x.G;
        work = works[index];
        past = work.keys - work.queries;
        first_key = work.block * keys;
        first = work.block == 0 ? 0 : max(0, first_key - past) / queries * queries;
        last = (work.queries - 1) / queries * queries;
        const int heads = x.Q / x.G / x.parts;
        first_head = (group * x.parts + part) * heads;
        steps = heads * ((last - first) / queries + 1);
    }
    /// The last key block that the queries from `query` on see: the last to add to their dq.
    __device__ __forceinline__ int last_block(int query) const {
        return max(0, past + min(query + queries, work.queries) - 1) / keys;
    }

    __device__ __forceinline__ u32 stage(int step) const { return shared + stages_at + step % 2 * stage_bytes; }
    __device__ __forceinline__ u32 statistics(int step) const { return shared + statistics_at + step % 2 * statistic_bytes; }
    __device__ __forceinline__ u32 scores(int step) const { return shared + scores_at + step % 2 * score_bytes; }
    __device__ __forceinline__ u32 sums(int step) const { return shared + sums_at + step % 2 * sum_bytes; }
    __device__ __forceinline__ u32 barrier(int i) const { return shared + barriers_at + 8 * i; }
    __device__ __forceinline__ u32 full(int step) const { return barrier(step % 2); }
    __device__ __forceinline__ u32 empty(int step) const { return barrier(2 + step % 2); }
    __device__ __forceinline__ u32 sums_full(int step) const { return barrier(4 + step % 2); }
    __device__ __forceinline__ u32 sums_empty(int step) const { return barrier(6 + step % 2); }
    __device__ __forceinline__ u32 keys_full() const { return barrier(8); }
};

/// A step: a head, and the first query of a block in the span. Queries go downwards, then heads upwards.
struct Step {
    int head, query;

    __device__ __forceinline__ explicit Step(const Block& block) : head(block.first_head), query(block.last) {}
    __device__ __forceinline__ void advance(const Block& block) {
        query -= queries;
        if (query < block.first) {
            query = block.last;
            ++head;
        }
    }
};

/// One warp: keys and values once, then queries, their gradients and statistics.
__device__ __forceinline__ void load(
    const Block& block, const Arguments& x, const TensorMap& q, const TensorMap& k, const TensorMap& v, const TensorMap& dout) {
    const int lane = lane_id();
    if (lane == 0) {
        barrier_expect(block.keys_full(), 4 * key_box);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = block.work.key + block.first_key;
            tensor_load(block.shared + k_at + i * key_box, k, block.keys_full(), 64 * i, block.group, row);
            tensor_load(block.shared + v_at + i * key_box, v, block.keys_full(), 64 * i, block.group, row);
        }
    }
    Step now(block);
    for (int step = 0; step < block.steps; ++step, now.advance(block)) {
        barrier_wait(block.empty(step), step / 2 % 2 ^ 1);
        const int row = block.work.query + now.query;
        const u32 stage = block.stage(step), full = block.full(step);
        if (lane == 0) {
            barrier_expect(full, stage_bytes);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                tensor_load(stage + i * query_box, q, full, 64 * i, now.head, row);
                tensor_load(stage + (2 + i) * query_box, dout, full, 64 * i, now.head, row);
            }
        }
        const u64 at = (u64)now.head * x.T + row;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int query = lane + 32 * i;
            const bool valid = now.query + query < block.work.queries;
            const u32 to = block.statistics(step) + 4 * query;
            copy_async4(to, x.lse_QT + at + (valid ? query : 0), valid);
            copy_async4(to + 4 * queries, x.delta_QT + at + (valid ? query : 0), valid);
        }
        copy_async_arrive(full);
    }
}

/// One thread: adds the tiles of dq to the sums in the block's turn. The first turn writes them.
__device__ __forceinline__ void add_queries(const Block& block, const Arguments& x) {
    const int number = block.work.block;
    Step now(block);
    Turn turn;
    for (int step = 0; step < block.steps; ++step) {
        turn.ask(x.state + 1 + (u64)(block.work.tile + now.query / queries) * x.Q + now.head);
        barrier_wait(block.sums_full(step), step / 2 % 2);
        turn.wait(number);
        asm volatile("fence.proxy.async;" ::: "memory");
        float* to = x.query_sums + ((u64)now.head * x.T + block.work.query + now.query) * head_size;
        const u32 bytes = min(queries, block.work.queries - now.query) * head_size * 4;
        if (number == 0) {
            asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                         ::"l"(to), "r"(block.sums(step)), "r"(bytes) : "memory");
        } else {
            asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;"
                         ::"l"(to), "r"(block.sums(step)), "r"(bytes) : "memory");
        }
        asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
        barrier_arrive(block.sums_empty(step));
        if (number < block.last_block(now.query)) {
            asm volatile("fence.proxy.async;" ::: "memory");
            turn.hand_on(number + 1);
        }
        now.advance(block);
    }
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

/// The thread's places of dq to a tile of floats. Chunk c (16 bytes) of row r stands at c ^ 2 (r % 4), so that all banks are written at
/// once; r counts from the first query of all.
__device__ __forceinline__ void store_queries(u32 tile, const float (&d)[32], int first_row) {
    const int lane = lane_id(), warp = threadIdx.x / 32 % 4;
    const u32 row = tile + (warp * 16 + lane / 4) * 512 + (threadIdx.x / 128 - 1) * 256 + lane % 4 * 8;
    const u32 swizzle = (first_row + lane / 4) % 4 * 32;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                         ::"r"(row + half * 4096 + (32 * j ^ swizzle)), "f"(d[4 * j + 2 * half]), "f"(d[4 * j + 2 * half + 1])
                         : "memory");
        }
    }
}

/// Adds the sums of the parts before this one, or leaves these for the next.
template <bool LOADS> __device__ __forceinline__ void pass_sums(float* at, float (&d)[64]) {
    float4* sums = (float4*)at + threadIdx.x - 128;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        if (LOADS) {
            const float4 x = __ldcg(sums + i * 256);
            d[4 * i] += x.x, d[4 * i + 1] += x.y, d[4 * i + 2] += x.z, d[4 * i + 3] += x.w;
        } else {
            __stcg(sums + i * 256, float4{d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]});
        }
    }
}

/// dk or dv, from the block's first key: += what the block has summed.
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

/// What the two warpgroups have summed leaves the block.
__device__ __forceinline__ void finish(const Block& block, const Arguments& x, float (&dk)[64], float (&dv)[64]) {
    if (x.parts > 1) {
        const u64 item = (u64)block.index * x.G + block.group;
        float* sums = x.key_sums + item * 2 * keys * head_size;
        Turn turn;
        turn.ask(x.state + 1 + (u64)x.tiles * x.Q + item);
        turn.wait(block.part);
        if (block.part > 0) {
            pass_sums<true>(sums, dk);
            pass_sums<true>(sums + keys * head_size, dv);
        }
        if (block.part + 1 < x.parts) {
            pass_sums<false>(sums, dk);
            pass_sums<false>(sums + keys * head_size, dv);
            meet();
            if (threadIdx.x == 128) turn.hand_on(block.part + 1);
            return;
        }
    }
    const int stride = x.G * head_size, count = block.work.keys - block.first_key;
    const u64 at = (u64)(block.work.key + block.first_key) * stride + block.group * head_size;
    add_keys(x.dk_UGD + at, stride, dk, x.scale, count);
    add_keys(x.dv_UGD + at, stride, dv, 1, count);
}

/// A warpgroup that multiplies. Under way at once: dP while P is made, dv while dS is, dk while the other warpgroup's dS is waited for,
/// the next S while dq leaves.
__device__ __forceinline__ void multiply(const Block& block, const Arguments& x, const Work* works, int together) {
    const int other = threadIdx.x / 128 - 1;
    const u64 k_rows = operand(block.shared + k_at + other * query_box), v_rows = operand(block.shared + v_at + other * query_box);
    const u64 k_columns = operand(block.shared + k_at + other * key_box);
    const float scale = x.scale * 1.44269504089f;
    float dk[64] = {}, dv[64] = {}, s[32], d[32];
    Step now(block);
    barrier_wait(block.keys_full(), 0);
    barrier_wait(block.full(0), 0);
    hold(dk), hold(dv);
    wgmma_fence();
    multiply_scores(s, k_rows, operand(block.stage(0)));
#pragma unroll 1
    for (int step = 0; step < block.steps; ++step) {
        const u32 stage = block.stage(step), statistics = block.statistics(step);
        u32 p[16], ds[16];
        wgmma_wait<0>();
        hold(s);
        wgmma_fence();
        multiply_scores(d, v_rows, operand(stage + 2 * query_box));
        make_scores(s, statistics, block.past + now.query + 1 - block.first_key, block.work.queries - now.query, scale);
        pack_scores(p, s);
        wgmma_fence();
        multiply_keys(dv, p, operand(stage + 2 * query_box, query_box));
        wgmma_wait<1>();
        hold(d);
        make_gradients(ds, p, d, statistics + 4 * queries);
        store_scores(block.scores(step), ds);
        fence_async_proxy();
        wgmma_fence();
        multiply_keys(dk, ds, operand(stage, query_box));
        wgmma_wait<1>();
        hold(dv);
        meet();
        wgmma_fence();
        multiply_queries(d, operand(block.scores(step)), k_columns);
        // The last step makes its own S again: one shape of the loop.
        const int next = step + 1 < block.steps ? step + 1 : step;
        barrier_wait(block.full(next), next / 2 % 2);
        multiply_scores(s, k_rows, operand(block.stage(next)));
        barrier_wait(block.sums_empty(step), step / 2 % 2 ^ 1);
        wgmma_wait<1>();
        hold(d), hold(dk);
        release(block.empty(step));
        store_queries(block.sums(step), d, block.work.query);
        fence_async_proxy();
        __syncwarp();
        if (lane_id() == 0) barrier_arrive(block.sums_full(step));
        now.advance(block);
    }
    wgmma_wait<0>();
    hold(s), hold(dk), hold(dv);
    // Made anew, to hold no registers through the products.
    finish(Block(block.shared, x, works, together), x, dk, dv);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_sm90_backward(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
    const __grid_constant__ TensorMap dout, const float* lse_QT, const float* delta_QT, const Work* works, bf16* dk_UGD,
    bf16* dv_UGD, float* query_sums, float* key_sums, int* state, int blocks, int parts, int together, int tiles, int T, int Q,
    int G, float scale) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory);
    if (threadIdx.x == 0) {
        store_shared32(shared + ticket_at, atomicAdd(state, 1));
        for (int i = 0; i < 2; ++i) {
            barrier_init(shared + barriers_at + 8 * i, 33);
            barrier_init(shared + barriers_at + 8 * (2 + i), 2);
            barrier_init(shared + barriers_at + 8 * (4 + i), 8);
            barrier_init(shared + barriers_at + 8 * (6 + i), 1);
        }
        barrier_init(shared + barriers_at + 8 * 8, 1);
        barrier_init_fence();
    }
    __syncthreads();
    const Arguments x = {lse_QT, delta_QT, dk_UGD, dv_UGD, query_sums, key_sums, state, blocks, parts, tiles, T, Q, G, scale};
    const Block block(shared, x, works, together);
    if (threadIdx.x < 128) {
        register_decrease<producer_registers>();
        if (threadIdx.x < 32) load(block, x, q, k, v, dout);
        else if (threadIdx.x == 32) add_queries(block, x);
    } else {
        register_increase<consumer_registers>();
        multiply(block, x, works, together);
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

/// dq = scale times the sums. A block takes the queries whose last keys are its own, of one head.
extern "C" __global__ void __launch_bounds__(256) attention_sm90_queries(
    const float* query_sums, const Work* works, bf16* dq_TQD, int T, int Q, float scale) {
    begin_kernel();
    const Work work = works[blockIdx.x / Q];
    const int head = blockIdx.x % Q, past = work.keys - work.queries;
    const auto last_block = [&](int query) { return max(0, past + min(query + queries, work.queries) - 1) / keys; };
    const int pair = threadIdx.x % 16;
    for (int query = work.block == 0 ? 0 : max(0, work.block * keys - past) / queries * queries; query < work.queries; query += queries) {
        if (last_block(query) > work.block) break;
        if (last_block(query) < work.block) continue;
#pragma unroll
        for (int i = 0; i < queries / 16; ++i) {
            const int r = query + i * 16 + threadIdx.x / 16;
            if (r >= work.queries) break;
            const u64 row = work.query + r;
            const float4* from = (const float4*)(query_sums + ((u64)head * T + row) * head_size) + 2 * (pair ^ row % 4);
            const float4 a = __ldcg(from), b = __ldcg(from + 1);
            store128(dq_TQD + (row * Q + head) * head_size + pair * 8,
                     Vector{pack(scale * a.x, scale * a.y), pack(scale * a.z, scale * a.w), pack(scale * b.x, scale * b.y),
                            pack(scale * b.z, scale * b.w)});
        }
    }
}
