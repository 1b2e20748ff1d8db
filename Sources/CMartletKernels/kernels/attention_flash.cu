// Causal attention over packed sequences, forward.
//
// Math       o = softmax(scale q k^T) v, query i of a span seeing the keys up to keys - queries + i; logSumExp of the scores.
//            Online softmax over blocks of 64 keys (Milakov & Gimelshein 2018; FlashAttention-2, Dao 2023).
// Shapes     q, o bf16 [T, Q, D]; k, v bf16 [U, G, D], head h reading h / (Q / G); logSumExp float [T, Q]; works [blocks].
// Budget     4 D FLOPs a seen pair and head; bound by mma.sync, then by shared memory: 13 FMA a byte with 32 rows a warp.
// Launch     -DHEAD=D (64, 128, 192, 256) -DWARPS -DWARP_ROWS (16 or 32 queries each) -DRING (tiles of keys or values in shared
//            memory) -DBLOCKS (an SM); <<<Q x blocks, 32 WARPS>>>, longest block first, 2 D (WARPS WARP_ROWS + 64 RING) bytes of
//            dynamic shared memory.
// Numerics   float sums; probabilities rounded to bf16 for the second product. A row's maximum is raised only when it grows by
//            2^8: what a row gets depends on its keys alone, not on the rows beside it. A query that sees nothing gets 0 and -inf.
// Reference  CPUBackend.attention.
#include "flash.cuh"

constexpr int keys = 64;
constexpr int queries = WARPS * WARP_ROWS;
constexpr int threads = WARPS * 32;
constexpr int tiles_m = WARP_ROWS / 16;
constexpr int key_bytes = keys * HEAD * 2;
/// How far (in powers of two) scores may stand above the maximum in use.
constexpr float slack = 8;

struct Softmax {
    /// Of the rows lane / 4 and lane / 4 + 8 of each 16: the maximum in use and this lane's part of the sum.
    float top[tiles_m][2];
    float sum[tiles_m][2];
};

/// Hides what lies behind the last key that each row sees: columns from `seen` on in row 0 of the warp, one more a row.
__device__ __forceinline__ void hide(float (&s)[tiles_m][keys / 8][4], int seen) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < tiles_m; ++m) {
#pragma unroll
        for (int i = 0; i < keys / 8 * 4; ++i) {
            const int column = i / 4 * 8 + lane % 4 * 2 + i % 2, row = m * 16 + lane / 4 + i / 2 % 2 * 8;
            if (column >= seen + row) s[m][i / 4][i % 4] = -infinity();
        }
    }
}

/// Scores to powers of two above the rows' maxima; scales `o` where a maximum was raised.
__device__ __forceinline__ void exponentiate(
    float (&s)[tiles_m][keys / 8][4], float (&o)[tiles_m][HEAD / 8][4], Softmax& softmax, float scale) {
    float top[tiles_m][2];
    bool grows = false;
#pragma unroll
    for (int m = 0; m < tiles_m; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float x = s[m][0][2 * half];
#pragma unroll
            for (int n = 0; n < keys / 8; ++n) x = fmaxf(x, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            x = quad_max(x) * scale;
            top[m][half] = x > softmax.top[m][half] + slack ? x : softmax.top[m][half];
            grows |= x > softmax.top[m][half] + slack;
        }
    }
    if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
        for (int m = 0; m < tiles_m; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const bool raised = top[m][half] > softmax.top[m][half];
                const float shrink = raised ? power2(softmax.top[m][half] - top[m][half]) : 1;
                softmax.top[m][half] = top[m][half];
                softmax.sum[m][half] *= shrink;
#pragma unroll
                for (int n = 0; n < HEAD / 8; ++n) {
                    o[m][n][2 * half] *= shrink;
                    o[m][n][2 * half + 1] *= shrink;
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < tiles_m; ++m) {
#pragma unroll
        for (int i = 0; i < keys / 8 * 4; ++i) {
            const int half = i / 2 % 2;
            // A row that has seen nothing keeps -inf, and must not subtract it from itself.
            const float from = softmax.top[m][half] == -infinity() ? 0 : softmax.top[m][half];
            float& x = s[m][i / 4][i % 4];
            x = power2(fmaf(x, scale, -from));
            softmax.sum[m][half] += x;
        }
    }
}

/// o += P V, P from the registers of the scores.
__device__ __forceinline__ void add_values(
    float (&o)[tiles_m][HEAD / 8][4], const float (&p)[tiles_m][keys / 8][4], const View<HEAD, Rows>& values) {
#pragma unroll
    for (int k = 0; k < keys / 16; ++k) {
        u32 x[tiles_m][4];
#pragma unroll
        for (int m = 0; m < tiles_m; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[m][i] = pack(p[m][2 * k + i / 2][i % 2 * 2], p[m][2 * k + i / 2][i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int n = 0; n < HEAD / 8; n += 2) {
            u32 y[4];
            load_matrices_transposed(y, values.at(16 * k, 8 * n));
#pragma unroll
            for (int m = 0; m < tiles_m; ++m) {
                mma_16_8_16(o[m][n], x[m][0], x[m][1], x[m][2], x[m][3], y[0], y[1]);
                mma_16_8_16(o[m][n + 1], x[m][0], x[m][1], x[m][2], x[m][3], y[2], y[3]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(threads, BLOCKS) attention_flash(
    const bf16* q_TQD, const bf16* k_UGD, const bf16* v_UGD, bf16* o_TQD, float* logSumExp_TQ, const Work* works, int Q, int G,
    float scale) {
    begin_kernel();
    extern __shared__ __align__(128) u8 memory[];
    const u32 query_tile = shared_address(memory), ring = query_tile + queries * HEAD * 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Work work = works[blockIdx.x / Q];
    const int head = blockIdx.x % Q, first = work.block * queries, count = min(queries, work.queries - first);
    // The block's first query sees `seen` keys, each further one one more.
    const int seen = work.keys - work.queries + first + 1;
    const int blocks = ceil_div(max(0, seen + count - 1), keys);
    const u64 query_stride = (u64)Q * HEAD, key_stride = (u64)G * HEAD;
    const u64 query_at = (work.query + first) * query_stride + head * HEAD;
    const u64 key_at = work.key * key_stride + head / (Q / G) * HEAD;

    // Tiles of the ring: the keys of block 0, its values, the keys of block 1, ...
    int fetched = 0;
    auto fetch = [&] {
        const int block = fetched / 2;
        if (block < blocks) {
            const bf16* from = (fetched % 2 ? v_UGD : k_UGD) + key_at + block * keys * key_stride;
            fetch_rows<keys, HEAD, threads>(ring + fetched % RING * key_bytes, from, key_stride, work.keys - block * keys);
        }
        copy_async_commit();
        ++fetched;
    };
    fetch_rows<queries, HEAD, threads>(query_tile, q_TQD + query_at, query_stride, count);
#pragma unroll
    for (int i = 0; i < RING - 1; ++i) fetch();

    float o[tiles_m][HEAD / 8][4] = {};
    Softmax softmax;
#pragma unroll
    for (int i = 0; i < 2 * tiles_m; ++i) {
        softmax.top[i / 2][i % 2] = -infinity();
        softmax.sum[i / 2][i % 2] = 0;
    }
    const View<HEAD, Rows> rows(query_tile, warp * WARP_ROWS, 0);
    for (int block = 0; block < blocks; ++block) {
        const int tile = 2 * block;
        copy_async_wait<RING - 2>();
        __syncthreads();
        fetch();
        float s[tiles_m][keys / 8][4] = {};
        multiply<tiles_m, keys / 8, HEAD / 16, false, false>(s, rows, View<HEAD, Chunks>(ring + tile % RING * key_bytes, 0, 0));
        const int visible = seen + warp * WARP_ROWS - block * keys;
        if (visible < keys) hide(s, visible);
        exponentiate(s, o, softmax, scale * 1.44269504089f);
        copy_async_wait<RING - 2>();
        __syncthreads();
        fetch();
        add_values(o, s, View<HEAD, Rows>(ring + (tile + 1) % RING * key_bytes, 0, 0));
    }

    copy_async_wait<0>();
    __syncthreads();
    // Through the warp's own rows of the query tile, so that whole rows are written.
#pragma unroll
    for (int m = 0; m < tiles_m; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp * WARP_ROWS + m * 16 + lane / 4 + 8 * half;
            const float sum = quad_sum(softmax.sum[m][half]), inverse = sum > 0 ? 1 / sum : 0;
            const u32 at = query_tile + row * HEAD * 2 + lane % 4 * 4;
#pragma unroll
            for (int n = 0; n < HEAD / 8; ++n) {
                const u32 pair = pack(o[m][n][2 * half] * inverse, o[m][n][2 * half + 1] * inverse);
                store_shared32(at + ((n ^ (row % 8)) << 4), pair);
            }
            if (lane % 4 == 0 && row < count) {
                const float ln2 = 0.69314718056f;
                const u64 place = (u64)(work.query + first + row) * Q + head;
                logSumExp_TQ[place] = sum > 0 ? softmax.top[m][half] * ln2 + __logf(sum) : -infinity();
            }
        }
    }
    __syncwarp();
    constexpr int chunks = HEAD / 8;
    for (int i = lane; i < WARP_ROWS * chunks; i += 32) {
        const int row = warp * WARP_ROWS + i / chunks, c = i % chunks;
        if (row >= count) break;
        const Vector eight = load_shared128(query_tile + row * HEAD * 2 + ((c ^ (row % 8)) << 4));
        store128(o_TQD + query_at + row * query_stride + c * 8, eight);
    }
}
