// Causal attention over packed sequences for any head size up to 256, in float or bf16: slow but right.
//
// Math       As attention_flash.cu and attention_flash_backward.cu. A lane takes the score of one of 32 keys (or of 32 queries),
//            then every lane some columns of the sums: s = q k, o += p v; with P = exp(scale s - logSumExp),
//            dS = P <do, v - o>, dv += P do, dk += scale dS q, dq = scale sum of dS k.
// Shapes     q, o [T, Q, D]; k, v [U, G, D] of `element`; logSumExp float [T, Q]; works: the spans (`block`, `tile` unused).
// Budget     nothing is kept for a neighbour: every row is read by every warp that needs it, from the caches.
// Launch     -DHALF -DHEAD=D; `attention_plain` and `attention_plain_queries` <<<T Q / 8, 256>>>, `attention_plain_keys`
//            <<<U G / 8, 256>>>: a warp a row and head. Rows of no span are left alone.
// Numerics   float sums in a fixed order; dk, dv are added to.
// Reference  CPUBackend.attention, attentionBackward.
#include "elements.cuh"
#include "flash.cuh"

/// Columns of a row that a lane sums: lane, lane + 32, ...
constexpr int columns = ceil_div(HEAD, 32);
typedef float Columns[columns];

/// The span that holds a row, or false: of queries or of keys.
template <bool KEYS> __device__ __forceinline__ bool find(Work& work, const Work* works, int spans, int row) {
    const int lane = threadIdx.x % 32;
    for (int first = 0; first < spans; first += 32) {
        bool holds = false;
        if (first + lane < spans) {
            const Work w = works[first + lane];
            holds = KEYS ? row >= w.key && row < w.key + w.keys : row >= w.query && row < w.query + w.queries;
        }
        const u32 found = __ballot_sync(0xffffffffu, holds);
        if (found) {
            work = works[first + __ffs(found) - 1];
            return true;
        }
    }
    return false;
}

__device__ __forceinline__ float dot(const element* x, const element* y) {
    float sum = 0;
    for (int d = 0; d < HEAD; ++d) sum += value(x[d]) * value(y[d]);
    return sum;
}
/// <x, y - z>
__device__ __forceinline__ float dot(const element* x, const element* y, const element* z) {
    float sum = 0;
    for (int d = 0; d < HEAD; ++d) sum += value(x[d]) * (value(y[d]) - value(z[d]));
    return sum;
}
/// sum += the lanes' weights times their rows, `count` rows `stride` elements apart.
__device__ __forceinline__ void add_rows(Columns& sum, float weight, const element* rows, u64 stride, int count) {
    for (int i = 0; i < count; ++i) {
        const float w = __shfl_sync(0xffffffffu, weight, i);
#pragma unroll
        for (int c = 0; c < columns; ++c) {
            const int d = c * 32 + threadIdx.x % 32;
            if (d < HEAD) sum[c] += w * value(rows[i * stride + d]);
        }
    }
}
__device__ __forceinline__ void write(element* to, const Columns& sum, float scale, bool adds) {
#pragma unroll
    for (int c = 0; c < columns; ++c) {
        const int d = c * 32 + threadIdx.x % 32;
        if (d < HEAD) put(to + d, scale * sum[c] + (adds ? value(to[d]) : 0));
    }
}

extern "C" __global__ void __launch_bounds__(256) attention_plain(
    const element* q_TQD, const element* k_UGD, const element* v_UGD, element* o_TQD, float* logSumExp_TQ, const Work* works,
    int spans, int T, int Q, int G, float scale) {
    begin_kernel();
    const u64 index = blockIdx.x * 8ull + threadIdx.x / 32;
    const int row = index / Q, head = index % Q, lane = threadIdx.x % 32;
    Work work;
    if (row >= T || !find<false>(work, works, spans, row)) return;
    const u64 stride = (u64)G * HEAD, at = work.key * stride + head / (Q / G) * HEAD;
    const int seen = work.keys - work.queries + row - work.query + 1;
    float top = -infinity(), total = 0;
    Columns o = {};
    for (int key = 0; key < seen; key += 32) {
        const int count = min(32, seen - key);
        const u64 from = at + key * stride;
        const float s = lane < count ? scale * dot(q_TQD + index * HEAD, k_UGD + from + lane * stride) : -infinity();
        const float most = fmaxf(top, warp_maximum(s)), shrink = expf(top - most), p = expf(s - most);
        top = most;
        total = total * shrink + group_sum<32>(p);
#pragma unroll
        for (int c = 0; c < columns; ++c) o[c] *= shrink;
        add_rows(o, p, v_UGD + from, stride, count);
    }
    write(o_TQD + index * HEAD, o, total > 0 ? 1 / total : 0, false);
    if (lane == 0) logSumExp_TQ[index] = total > 0 ? top + logf(total) : -infinity();
}

extern "C" __global__ void __launch_bounds__(256) attention_plain_queries(
    const element* q_TQD, const element* k_UGD, const element* v_UGD, const element* o_TQD, const float* logSumExp_TQ,
    const element* do_TQD, const Work* works, element* dq_TQD, int spans, int T, int Q, int G, float scale) {
    begin_kernel();
    const u64 index = blockIdx.x * 8ull + threadIdx.x / 32;
    const int row = index / Q, head = index % Q, lane = threadIdx.x % 32;
    Work work;
    if (row >= T || !find<false>(work, works, spans, row)) return;
    const u64 stride = (u64)G * HEAD, at = work.key * stride + head / (Q / G) * HEAD;
    const int seen = work.keys - work.queries + row - work.query + 1;
    Columns dq = {};
    for (int key = 0; key < seen; key += 32) {
        const int count = min(32, seen - key);
        const u64 from = at + key * stride, mine = from + lane * stride;
        float ds = 0;
        if (lane < count) {
            const float p = expf(scale * dot(q_TQD + index * HEAD, k_UGD + mine) - logSumExp_TQ[index]);
            ds = p * dot(do_TQD + index * HEAD, v_UGD + mine, o_TQD + index * HEAD);
        }
        add_rows(dq, ds, k_UGD + from, stride, count);
    }
    write(dq_TQD + index * HEAD, dq, scale, false);
}

extern "C" __global__ void __launch_bounds__(256) attention_plain_keys(
    const element* q_TQD, const element* k_UGD, const element* v_UGD, const element* o_TQD, const float* logSumExp_TQ,
    const element* do_TQD, const Work* works, element* dk_UGD, element* dv_UGD, int spans, int U, int Q, int G, float scale) {
    begin_kernel();
    const u64 index = blockIdx.x * 8ull + threadIdx.x / 32;
    const int row = index / G, group = Q / G, lane = threadIdx.x % 32;
    Work work;
    if (row >= U || !find<true>(work, works, spans, row)) return;
    // The first query that sees this key.
    const int first = max(0, row - work.key - (work.keys - work.queries));
    const u64 stride = (u64)Q * HEAD, key_at = index * HEAD;
    Columns dk = {}, dv = {};
    for (int head = (int)(index % G) * group, i = 0; i < group; ++i, ++head) {
        for (int query = first; query < work.queries; query += 32) {
            const int count = min(32, work.queries - query);
            const u64 from = (work.query + query) * stride + head * HEAD, mine = from + lane * stride;
            float p = 0, ds = 0;
            if (lane < count) {
                const float lse = logSumExp_TQ[(u64)(work.query + query + lane) * Q + head];
                p = expf(scale * dot(q_TQD + mine, k_UGD + key_at) - lse);
                ds = p * dot(do_TQD + mine, v_UGD + key_at, o_TQD + mine);
            }
            add_rows(dk, ds, q_TQD + from, stride, count);
            add_rows(dv, p, do_TQD + from, stride, count);
        }
    }
    write(dk_UGD + key_at, dk, scale, true);
    write(dv_UGD + key_at, dv, 1, true);
}
