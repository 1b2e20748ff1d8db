// Causal attention over packed sequences, backward.
//
// Math       P = exp(scale q k^T - logSumExp); dv += P^T do; dS = P (do v^T - <do, o>); dk += scale dS^T q; dq = scale dS k.
//            A block keeps KEYS keys and walks the queries that see them (FlashAttention-2, Dao 2023), for the heads of its part
//            of a group in turn: k and v are read once, dk and dv sum over the group in registers.
// Shapes     as the forward pass; lse, delta float [Q, T]; sums float [Q, T, D] and [tiles, 2 KEYS D], in no order that matters
//            elsewhere; state int [1 + tiles of queries x Q x WARPS + blocks of keys x G], zeros.
// Budget     10 D FLOPs a seen pair and head; bound by shared memory: 8.6 FMA a byte. Each step passes QUERIES D floats of dq
//            through L2.
// Launch     -DHEAD -DKEYS -DQUERIES -DWARPS -DSTAGES; `attention_delta` <<<T Q / 8, 256>>>, then `attention_flash_backward`
//            <<<blocks of keys x G x parts, 32 WARPS>>>, dynamic shared memory 4 D (KEYS + STAGES QUERIES) + 4 KEYS QUERIES +
//            8 STAGES QUERIES bytes. Key blocks come longest first, and those of a span in ascending order.
// Numerics   float sums; P and dS rounded to bf16 for the products. Blocks add to dq in turns, from the first keys of a span to
//            the last, and parts of a group to dk, dv in order: the same bytes each run. Tickets see to it that the blocks
//            whose turn comes before are running; queries are walked downwards and `together` heads side by side, so that a
//            turn has come up when it is asked for.
// Reference  CPUBackend.attentionBackward.
#include "flash.cuh"
#include "turn.cuh"

constexpr int threads = WARPS * 32;
constexpr int key_bytes = KEYS * HEAD * 2;
constexpr int query_bytes = QUERIES * HEAD * 2;
constexpr int stage_bytes = 2 * query_bytes + 2 * QUERIES * 4;
constexpr int score_bytes = KEYS * QUERIES * 2;

// How the warps share a tile: scores and dk, dv in `key_warps` x `other_warps`, each 32 keys high; dq in `row_warps` x
// `column_warps`, each 32 queries high. Columns of D are dealt to the warps 16 at a time.
static_assert(QUERIES % 64 == 0, "rows of a tile of scores are swizzled by 8 chunks");
constexpr int key_warps = KEYS / 32;
constexpr int other_warps = WARPS / key_warps;
constexpr int score_tiles = QUERIES / other_warps / 8;
constexpr int head_tiles = HEAD / other_warps / 8;
constexpr int row_warps = QUERIES / 32;
constexpr int column_warps = WARPS / row_warps;
constexpr int dq_tiles = HEAD / column_warps / 8;

typedef float Scores[2][score_tiles][4];
typedef float KeySums[2][head_tiles][4];
typedef float QuerySums[2][dq_tiles][4];

/// lse = logSumExp / ln 2 and delta = <do, o>, turned to [Q, T]; and zeros in `state`. A warp takes a head of a row.
extern "C" __global__ void __launch_bounds__(256) attention_delta(
    const bf16* o_TQD, const bf16* do_TQD, const float* logSumExp_TQ, float* lse_QT, float* delta_QT, int* state,
    int state_count, int T, int Q) {
    begin_kernel();
    const int lane = threadIdx.x % 32;
    const u64 index = blockIdx.x * 8ull + threadIdx.x / 32;
    for (u64 i = index * 32 + lane; i < state_count; i += gridDim.x * 256ull) state[i] = 0;
    if (index >= (u64)T * Q) return;
    const int row = index % T, head = index / T;
    const u64 at = ((u64)row * Q + head) * (HEAD / 2) + lane;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < HEAD / 64; ++i) {
        const u32 x = ((const u32*)o_TQD)[at + 32 * i], y = ((const u32*)do_TQD)[at + 32 * i];
        sum += low(x) * low(y) + high(x) * high(y);
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (lane == 0) {
        lse_QT[index] = logSumExp_TQ[(u64)row * Q + head] * 1.44269504089f;
        delta_QT[index] = sum;
    }
}

/// Where a warp's scores stand in a [KEYS, QUERIES] tile: as rows of keys.
__device__ __forceinline__ void store_scores(u32 tile, const Scores& s, int key, int query) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = key + m * 16 + lane / 4 + 8 * half;
#pragma unroll
            for (int n = 0; n < score_tiles; ++n) {
                const u32 at = tile + row * QUERIES * 2 + (((query / 8 + n) ^ (row % 8)) << 4) + lane % 4 * 4;
                store_shared32(at, pack(s[m][n][2 * half], s[m][n][2 * half + 1]));
            }
        }
    }
}

/// dk or dv: += what the block has summed.
__device__ __forceinline__ void add_keys(bf16* to, u64 stride, const KeySums& d, float scale, int row, int column, int count) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = row + m * 16 + lane / 4 + 8 * half;
            if (r >= count) continue;
#pragma unroll
            for (int n = 0; n < head_tiles; ++n) {
                u32* pair = (u32*)(to + r * stride + column + n / 2 * 16 * other_warps + n % 2 * 8 + lane % 4 * 2);
                const u32 old = *pair;
                *pair = pack(low(old) + scale * d[m][n][2 * half], high(old) + scale * d[m][n][2 * half + 1]);
            }
        }
    }
}

/// Adds the sums of the parts before this one, or leaves these for the next.
template <bool LOADS> __device__ __forceinline__ void pass_sums(float* at, KeySums& d) {
    float4* sums = (float4*)at + threadIdx.x;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < head_tiles; ++n) {
            float4* place = sums + (m * head_tiles + n) * threads;
            if (LOADS) {
                const float4 x = __ldcg(place);
                d[m][n][0] += x.x, d[m][n][1] += x.y, d[m][n][2] += x.z, d[m][n][3] += x.w;
            } else {
                __stcg(place, float4{d[m][n][0], d[m][n][1], d[m][n][2], d[m][n][3]});
            }
        }
    }
}

/// What a thread knows of its block.
struct Block {
    Work work;
    /// First queries of the first and last query block that see these keys.
    int first, last;
    /// Query i of the span sees the keys up to past + i.
    int past;

    /// The last key block that the queries from `query` on see: the last to add to their dq.
    __device__ __forceinline__ int last_block(int query) const {
        return max(0, past + min(query + QUERIES, work.queries) - 1) / KEYS;
    }
};

/// A step: a head, and the first query of a block in the span. Queries go downwards, then heads upwards.
struct Step {
    int head, query;

    __device__ __forceinline__ void advance(const Block& block) {
        query -= QUERIES;
        if (query < block.first) {
            query = block.last;
            ++head;
        }
    }
};

/// scores = P, dscores = dS of a step; both go to shared memory as well.
__device__ __forceinline__ void make_scores(
    u32 k, u32 v, u32 q, u32 dout, const float* lse, u32 p_tile, u32 ds_tile, int visible, float scale) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int key = warp % key_warps * 32, query = warp / key_warps * score_tiles * 8;
    Scores p = {}, ds = {};
    multiply<2, score_tiles, HEAD / 16, false, false>(p, View<HEAD, Rows>(k, key, 0), View<HEAD, Chunks>(q, query, 0));
#pragma unroll
    for (int n = 0; n < score_tiles; ++n) {
        const float2 from = *(const float2*)(lse + query + n * 8 + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float& x = p[i / 4][n][i % 4];
            x = power2(fmaf(x, scale, i % 2 ? -from.y : -from.x));
        }
    }
    if (visible < KEYS) {
#pragma unroll
        for (int i = 0; i < 8 * score_tiles; ++i) {
            const int row = key + i / 4 / score_tiles * 16 + lane / 4 + i / 2 % 2 * 8;
            const int column = query + i / 4 % score_tiles * 8 + lane % 4 * 2 + i % 2;
            if (row >= visible + column) p[i / 4 / score_tiles][i / 4 % score_tiles][i % 4] = 0;
        }
    }
    store_scores(p_tile, p, key, query);
    multiply<2, score_tiles, HEAD / 16, false, false>(ds, View<HEAD, Rows>(v, key, 0), View<HEAD, Chunks>(dout, query, 0));
#pragma unroll
    for (int n = 0; n < score_tiles; ++n) {
        const float2 delta = *(const float2*)(lse + QUERIES + query + n * 8 + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float& x = ds[i / 4][n][i % 4];
            x = p[i / 4][n][i % 4] * (x - (i % 2 ? delta.y : delta.x));
        }
    }
    store_scores(ds_tile, ds, key, query);
}

/// A thread's numbers of a [QUERIES, D] tile of dq: four for each j, of two rows.
struct QueryPlace {
    int row, column;

    __device__ __forceinline__ explicit QueryPlace(int j) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        row = warp % row_warps * 32 + j / dq_tiles * 16 + lane / 4;
        column = (warp / row_warps + j % dq_tiles / 2 * column_warps) * 16 + j % 2 * 8 + lane % 4 * 2;
    }
};

/// The sums of such a tile, in float. Every block has the same thread for a place, so that a whole tile may stand in the order of
/// the threads: fours where four are added at once (Hopper), else ones. Of the last tile of a span only `count` rows are there.
template <bool WHOLE> struct Sums {
    static constexpr bool fours = WHOLE && __CUDA_ARCH__ >= 900;
    float* tile;
    int count;

    __device__ __forceinline__ float* place(int j, int c) const {
        if (WHOLE) return tile + (fours ? (j * threads + threadIdx.x) * 4 + c : (j * 4 + c) * threads + threadIdx.x);
        const QueryPlace at(j);
        return at.row + c / 2 * 8 < count ? tile + (at.row + c / 2 * 8) * HEAD + at.column + c % 2 : nullptr;
    }
    __device__ __forceinline__ void set(int j, const float (&x)[4]) const {
        if constexpr (fours) {
            __stcg((float4*)place(j, 0), float4{x[0], x[1], x[2], x[3]});
        } else {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                if (float* p = place(j, c)) __stcg(p, x[c]);
            }
        }
    }
    /// x += the sums.
    __device__ __forceinline__ void get(int j, float (&x)[4]) const {
        if constexpr (fours) {
            const float4 y = __ldcg((const float4*)place(j, 0));
            x[0] += y.x, x[1] += y.y, x[2] += y.z, x[3] += y.w;
        } else {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                if (const float* p = place(j, c)) x[c] += __ldcg(p);
            }
        }
    }
    /// While nobody else adds: the order is that of the turns.
    __device__ __forceinline__ void add(int j, const float (&x)[4]) const {
        if constexpr (fours) {
            asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                         ::"l"(place(j, 0)), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]) : "memory");
        } else {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                if (float* p = place(j, c)) asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(p), "f"(x[c]) : "memory");
            }
        }
    }
};

/// Adds a warp's dq to the sums in the block's turn; the last turn writes `dq`, which begins at the tile's first query.
template <bool WHOLE> __device__ __forceinline__ void add_queries(
    Sums<WHOLE> sums, bf16* dq, u64 stride, QuerySums& d, float scale, bool is_first, bool is_last) {
    constexpr int fours = 2 * dq_tiles;
    if (!is_first && !is_last) {
#pragma unroll
        for (int j = 0; j < fours; ++j) sums.add(j, d[j / dq_tiles][j % dq_tiles]);
        return;
    }
    if (!is_last) {
#pragma unroll
        for (int j = 0; j < fours; ++j) sums.set(j, d[j / dq_tiles][j % dq_tiles]);
        return;
    }
    if (!is_first) {
#pragma unroll
        for (int j = 0; j < fours; ++j) sums.get(j, d[j / dq_tiles][j % dq_tiles]);
    }
#pragma unroll
    for (int j = 0; j < fours; ++j) {
        const float(&x)[4] = d[j / dq_tiles][j % dq_tiles];
        const QueryPlace at(j);
        bf16* to = dq + at.row * stride + at.column;
        if (at.row < sums.count) *(u32*)to = pack(scale * x[0], scale * x[1]);
        if (at.row + 8 < sums.count) *(u32*)(to + 8 * stride) = pack(scale * x[2], scale * x[3]);
    }
}

extern "C" __global__ void __launch_bounds__(threads, 1) attention_flash_backward(
    const bf16* q_TQD, const bf16* k_UGD, const bf16* v_UGD, const bf16* do_TQD, const float* lse_QT, const float* delta_QT,
    const Work* works, bf16* dq_TQD, bf16* dk_UGD, bf16* dv_UGD, float* query_sums, float* key_sums, int* state, int blocks,
    int parts, int together, int tiles, int T, int Q, int G, float scale) {
    begin_kernel();
    extern __shared__ __align__(128) u8 memory[];
    __shared__ int ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(state, 1);
    __syncthreads();
    // Heads of a part and group run side by side, `together` of them.
    const int unit = ticket / (blocks * together) * together + ticket % together, index = ticket / together % blocks;
    const int part = unit / G, group = unit % G, warp = threadIdx.x / 32;
    const u32 k = shared_address(memory), v = k + key_bytes, stages = v + key_bytes;
    const u32 p = stages + STAGES * stage_bytes, ds = p + score_bytes;
    const u64 query_stride = (u64)Q * HEAD, key_stride = (u64)G * HEAD;

    Block block;
    const Work work = block.work = works[index];
    block.past = work.keys - work.queries;
    const int first_key = work.block * KEYS, key_count = work.keys - first_key;
    block.first = work.block == 0 ? 0 : max(0, first_key - block.past) / QUERIES * QUERIES;
    block.last = (work.queries - 1) / QUERIES * QUERIES;
    const int heads = Q / G / parts, steps = heads * ((block.last - block.first) / QUERIES + 1);
    Step now = {(group * parts + part) * heads, block.last}, ahead = now;

    auto fetch = [&](int step) {
        const u32 stage = stages + step % STAGES * stage_bytes;
        const int count = work.queries - ahead.query;
        const u64 at = (work.query + ahead.query) * query_stride + ahead.head * HEAD;
        fetch_rows<QUERIES, HEAD, threads>(stage, q_TQD + at, query_stride, count);
        fetch_rows<QUERIES, HEAD, threads>(stage + query_bytes, do_TQD + at, query_stride, count);
        for (int i = threadIdx.x; i < 2 * QUERIES; i += threads) {
            const bool valid = i % QUERIES < count;
            const u64 place = (u64)ahead.head * T + work.query + ahead.query + (valid ? i % QUERIES : 0);
            copy_async4(stage + 2 * query_bytes + 4 * i, (i < QUERIES ? lse_QT : delta_QT) + place, valid);
        }
        copy_async_commit();
        ahead.advance(block);
    };
    const u64 key_at = (work.key + first_key) * key_stride + group * HEAD;
    fetch_rows<KEYS, HEAD, threads>(k, k_UGD + key_at, key_stride, key_count);
    fetch_rows<KEYS, HEAD, threads>(v, v_UGD + key_at, key_stride, key_count);
    fetch(0);

    KeySums dk = {}, dv = {};
    const int key = warp % key_warps * 32, column = warp / key_warps * 16;
    for (int step = 0; step < steps; ++step) {
        const u32 q = stages + step % STAGES * stage_bytes, dout = q + query_bytes;
        const int query = now.query;
        copy_async_wait<0>();
        __syncthreads();
        if (STAGES == 2 && step + 1 < steps) fetch(step + 1);
        const float* lse = (const float*)(memory + (dout + query_bytes - k));
        make_scores(k, v, q, dout, lse, p, ds, block.past + query + 1 - first_key, scale * 1.44269504089f);
        __syncthreads();

        const int number = work.block, last = block.last_block(query);
        Turn turn;
        turn.ask(state + 1 + ((u64)(work.tile + query / QUERIES) * Q + now.head) * WARPS + warp);
        QuerySums dq = {};
        multiply<2, dq_tiles, KEYS / 16, true, true, 16 * column_warps>(
            dq, View<QUERIES, Chunks>(ds, 0, warp % row_warps * 32), View<HEAD, Rows>(k, 0, warp / row_warps * 16));
        turn.wait(number);
        __syncwarp();
        bf16* dq_rows = dq_TQD + (work.query + query) * query_stride + now.head * HEAD;
        float* sums = query_sums + ((u64)now.head * T + work.query + query) * HEAD;
        const int count = work.queries - query;
        if (count >= QUERIES) {
            add_queries(Sums<true>{sums, count}, dq_rows, query_stride, dq, scale, number == 0, number == last);
        } else {
            add_queries(Sums<false>{sums, count}, dq_rows, query_stride, dq, scale, number == 0, number == last);
        }
        multiply<2, head_tiles, QUERIES / 16, false, true, 16 * other_warps>(
            dv, View<QUERIES, Rows>(p, key, 0), View<HEAD, Rows>(dout, 0, column));
        __syncwarp();
        if (number < last && threadIdx.x % 32 == 0) turn.hand_on(number + 1);
        multiply<2, head_tiles, QUERIES / 16, false, true, 16 * other_warps>(
            dk, View<QUERIES, Rows>(ds, key, 0), View<HEAD, Rows>(q, 0, column));
        if (STAGES == 1 && step + 1 < steps) {
            __syncthreads();
            fetch(step + 1);
        }
        now.advance(block);
    }

    if (parts > 1) {
        Turn turn;
        turn.ask(state + 1 + (u64)tiles * Q * WARPS + index * G + group);
        float* sums = key_sums + (u64)(index * G + group) * 2 * KEYS * HEAD;
        turn.wait(part);
        if (part > 0) {
            pass_sums<true>(sums, dk);
            pass_sums<true>(sums + KEYS * HEAD, dv);
        }
        if (part + 1 < parts) {
            pass_sums<false>(sums, dk);
            pass_sums<false>(sums + KEYS * HEAD, dv);
            __syncthreads();
            if (threadIdx.x == 0) turn.hand_on(part + 1);
            return;
        }
    }
    add_keys(dk_UGD + key_at, key_stride, dk, scale, key, column, key_count);
    add_keys(dv_UGD + key_at, key_stride, dv, 1, key, column, key_count);
}
