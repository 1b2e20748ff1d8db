// A row of logits becomes its loss and, in its place, its gradient.
//
// Math       loss = log(sum_v exp(x_v)) - x_target; x_v = scale (softmax(x)_v - [v = target]). A target of -1: loss 0, gradient 0;
//            a target that is not in the vocabulary: NaN.
// Shapes     logits [rows, V] of the compute dtype; target int32 [rows]; loss float [rows]. Any V.
// Budget     bytes s rows V for the loss (s bytes a logit), 2 s rows V with the gradient: read, write; the second reading goes
//            backwards, from what the caches hold of the first. 9 instructions and 2 exponentials a logit. Bound by bytes.
// Launch     -DHALF; <<<rows, 1024>>>. Where rows are not 16-byte aligned (odd V), their ends are taken one by one.
// Numerics   running maximum and sum a thread, put together in a fixed order; float; one rounding of the gradient.
// Reference  CPUBackend.crossEntropy.
#include "elements.cuh"

constexpr int threads = 1024;
/// Eights that a thread has on the way at a time.
constexpr int depth = 4;

/// The sum of exp(x - most). `most` starts finite, so that a logit of -infinity counts as 0.
struct Softmax {
    float most;
    float sum;

    __device__ __forceinline__ static Softmax of_nothing() { return Softmax{-3e38f, 0.0f}; }

    template <int count> __device__ __forceinline__ void take(const float (&x)[count]) {
        float larger = most;
#pragma unroll
        for (int i = 0; i < count; ++i) larger = fmaxf(larger, x[i]);
        if (larger > most) {
            sum *= __expf(most - larger);
            most = larger;
        }
#pragma unroll
        for (int i = 0; i < count; ++i) sum += __expf(x[i] - most);
    }

    /// Over the 32 lanes, in each of them.
    __device__ __forceinline__ Softmax across_warp() const {
        const float all = warp_maximum(most);
        return Softmax{all, group_sum<32>(sum * __expf(most - all))};
    }
};

/// A row as threads walk it: aligned eights, and the few logits before and after them.
struct Row {
    element* start;
    int before;
    int eights;
    int ends;

    __device__ __forceinline__ Row(element* start, int count) : start(start) {
        before = min(count, (int)(-(u64)start % 16 / sizeof(element)));
        eights = (count - before) / 8;
        ends = count - eights * 8;
    }
    __device__ __forceinline__ Eight<element>& eight(int i) const { return *(Eight<element>*)(start + before + 8 * i); }
    __device__ __forceinline__ element* end(int i) const { return start + (i < before ? i : i + eights * 8); }
};

__device__ __forceinline__ Softmax softmax(const Row& row) {
    Softmax mine = Softmax::of_nothing();
    for (int first = threadIdx.x; first < row.eights; first += depth * threads) {
        Eight<element> v[depth];
#pragma unroll
        for (int j = 0; j < depth; ++j) {
            if (first + j * threads < row.eights) v[j] = row.eight(first + j * threads);
        }
#pragma unroll
        for (int j = 0; j < depth; ++j) {
            if (first + j * threads >= row.eights) break;
            float x[8];
            unpack(v[j], x);
            mine.take(x);
        }
    }
    if (threadIdx.x < row.ends) {
        const float x[1] = {value(*row.end(threadIdx.x))};
        mine.take(x);
    }
    static_assert(threads == 32 * 32, "a warp's sum for each lane of a warp");
    __shared__ Softmax of_warp[32];
    mine = mine.across_warp();
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
    __syncthreads();
    return of_warp[threadIdx.x % 32].across_warp();
}

/// x = scale exp(x - most), from the row's end to its start.
__device__ __forceinline__ void scale_row(const Row& row, float most, float scale) {
    for (int first = row.eights - 1 - (int)threadIdx.x; first >= 0; first -= depth * threads) {
        Eight<element> v[depth];
#pragma unroll
        for (int j = 0; j < depth; ++j) {
            if (first - j * threads >= 0) v[j] = row.eight(first - j * threads);
        }
#pragma unroll
        for (int j = 0; j < depth; ++j) {
            if (first - j * threads < 0) break;
            float x[8];
            unpack(v[j], x);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = scale * __expf(x[i] - most);
            repack(x, row.eight(first - j * threads));
        }
    }
    if (threadIdx.x < row.ends) {
        element* x = row.end(threadIdx.x);
        put(x, scale * __expf(value(*x) - most));
    }
}

__device__ __forceinline__ void zero_row(const Row& row) {
    for (int i = threadIdx.x; i < row.eights; i += threads) row.eight(i) = {};
    if (threadIdx.x < row.ends) put(row.end(threadIdx.x), 0.0f);
}

extern "C" __global__ void __launch_bounds__(threads) cross_entropy(
    element* logits, const int* target, float* loss, int vocabulary, int gives_gradient, float scale) {
    begin_kernel();
    const Row row(logits + (u64)blockIdx.x * vocabulary, vocabulary);
    const int wanted = target[blockIdx.x];
    if (wanted < 0) {
        if (threadIdx.x == 0) loss[blockIdx.x] = 0;
        if (gives_gradient) zero_row(row);
        return;
    }
    // Read before anyone writes: the sums below wait for all threads.
    const bool exists = wanted < vocabulary;
    const float x = threadIdx.x == 0 && exists ? value(row.start[wanted]) : not_a_number();
    const Softmax all = softmax(row);
    if (threadIdx.x == 0) loss[blockIdx.x] = logf(all.sum) + (all.most - x);
    if (!gives_gradient) return;
    const float factor = exists ? scale / all.sum : not_a_number();
    scale_row(row, all.most, factor);
    __syncthreads();
    if (threadIdx.x == 0 && exists) put(row.start + wanted, factor * __expf(x - all.most) - scale);
}
