// What stands before and behind the products of attention's backward pass on Hopper (attention_sm90_backward.cu).
//
// Math       delta = <do, o>; dq = scale times its sums; dk += scale times the shares of its sums, dv += those of its own.
// Shapes     o, do, dq [T, Q, 128], dk, dv [U, G, 128] bf16; logSumExp float [T, Q]; lse, delta float [Q, T]; sums and state as
//            there.
// Budget     516 bytes a row and head before, 768 behind: the memory's speed.
// Launch     `attention_sm90_delta` <<<ceil(T Q / 16), 256>>>; `attention_sm90_finish` <<<blocks of 256 keys x (Q + 32 G), 256>>>, or
//            <<<those x Q, 256>>> where groups have no parts and dk and dv are complete.
// Numerics   float sums, of the shares in order; rounded once.
// Reference  CPUBackend.attentionBackward.
#include "attention_sm90.cuh"

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

/// Eight sums of a row, the `place`th of such, turned back from the order in which `store_sums` put row `r`.
struct Eight {
    float4 a, b;

    __device__ __forceinline__ void read(const float* row, int place, int r) {
        const float4* from = (const float4*)row + 2 * (place ^ r % 4);
        a = __ldcg(from), b = __ldcg(from + 1);
    }
    __device__ __forceinline__ void add(const Eight& x) {
        a.x += x.a.x, a.y += x.a.y, a.z += x.a.z, a.w += x.a.w;
        b.x += x.b.x, b.y += x.b.y, b.z += x.b.z, b.w += x.b.w;
    }
    /// scale times these, added to `x` and rounded.
    __device__ __forceinline__ Vector round(float scale, Vector x) const {
        return Vector{
            pack(low(x.x) + scale * a.x, high(x.x) + scale * a.y), pack(low(x.y) + scale * a.z, high(x.y) + scale * a.w),
            pack(low(x.z) + scale * b.x, high(x.z) + scale * b.y), pack(low(x.w) + scale * b.z, high(x.w) + scale * b.w)};
    }
};

/// A block takes the queries whose last keys are those of a block of 256 keys, of one head; or 32 rows and 64 columns of dk or dv.
extern "C" __global__ void __launch_bounds__(256) attention_sm90_finish(
    const float* query_sums, const float* key_sums, const Work* works, bf16* dq_TQD, bf16* dk_UGD, bf16* dv_UGD, int blocks,
    int shares, int T, int Q, int G, float scale) {
    begin_kernel();
    const int index = blockIdx.x % blocks, head = blockIdx.x / blocks;
    const Work work = works[index];
    const int past = work.keys - work.queries;
    if (head >= Q) {
        const int group = (head - Q) / 32, rank = (head - Q) / 16 % 2, j = (head - Q) / 4 % 4, place = threadIdx.x % 8;
        const int r = (head - Q) % 4 * 32 + threadIdx.x / 8, key = work.block * cluster_keys + rank * keys + r;
        if (key >= work.keys) return;
        const float* sums = key_sums + ((((u64)(2 * index + rank) * G + group) * shares * 4 + j) * keys + r) * 64;
        const u64 row = (u64)(work.key + key) * G + group;
        bf16* to = (j < 2 ? dk_UGD : dv_UGD) + row * head_size + j % 2 * 64 + place * 8;
        const Vector old = load128_once(to);
        Eight sum = {}, next;
#pragma unroll 4
        for (int share = 0; share < shares; ++share, sums += 4 * keys * 64) next.read(sums, place, r), sum.add(next);
        store128(to, sum.round(j < 2 ? scale : 1, old));
        return;
    }
    const auto last_block = [&](int query) { return max(0, past + min(query + queries, work.queries) - 1) / cluster_keys; };
    const int place = threadIdx.x % 16, first = work.block == 0 ? 0 : max(0, work.block * cluster_keys - past) / queries * queries;
    for (int query = first; query < work.queries; query += queries) {
        if (last_block(query) > work.block) break;
        if (last_block(query) < work.block) continue;
        Eight sums[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = query + i * 16 + threadIdx.x / 16, row = work.query + r;
            const float* from = query_sums + ((u64)(place / 8 * Q + head) * T + row) * 64;
            if (r < work.queries) sums[i].read(from, place % 8, row);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = query + i * 16 + threadIdx.x / 16, row = work.query + r;
            if (r >= work.queries) continue;
            store128(dq_TQD + ((u64)row * Q + head) * head_size + place * 8, sums[i].round(scale, Vector{0, 0, 0, 0}));
        }
    }
}
