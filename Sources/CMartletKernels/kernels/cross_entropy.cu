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
#include "element.cuh"

#ifndef THREADS
#define THREADS 1024
#endif
#ifndef BLOCKS
#define BLOCKS 1
#endif

/// Vectors that a thread has on the way at a time.
#ifndef DEPTH
#define DEPTH 4
#endif

union Elements {
    Vector vector;
    Element at[vector_width];
};

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

    /// Over the 32 lanes, the same in each.
    __device__ __forceinline__ Softmax across_warp() const {
        const float all = warp_maximum(most);
        return Softmax{all, warp_sum(sum * __expf(most - all))};
    }
};

/// A row as threads walk it: aligned vectors, and the few logits before and after them.
struct Row {
    Element* start;
    int before;
    int vectors;
    int ends;

    __device__ __forceinline__ Row(Element* start, int count) : start(start) {
        before = min(count, (int)(-(u64)start % 16 / sizeof(Element)));
        vectors = (count - before) / vector_width;
        ends = count - vectors * vector_width;
    }
    __device__ __forceinline__ Elements* vector(int i) const { return (Elements*)(start + before) + i; }
    __device__ __forceinline__ Element* end(int i) const { return start + (i < before ? i : i + vectors * vector_width); }
};

__device__ __forceinline__ Softmax softmax(const Row& row) {
    Softmax mine = Softmax::of_nothing();
    for (int first = threadIdx.x; first < row.vectors; first += DEPTH * THREADS) {
        Elements v[DEPTH];
#pragma unroll
        for (int j = 0; j < DEPTH; ++j) {
            if (first + j * THREADS < row.vectors) v[j].vector = row.vector(first + j * THREADS)->vector;
        }
#pragma unroll
        for (int j = 0; j < DEPTH; ++j) {
            if (first + j * THREADS >= row.vectors) break;
            float x[vector_width];
#pragma unroll
            for (int i = 0; i < vector_width; ++i) x[i] = value(v[j].at[i]);
            mine.take(x);
        }
    }
    if (threadIdx.x < row.ends) {
        const float x[1] = {value(*row.end(threadIdx.x))};
        mine.take(x);
    }
    constexpr int warps = THREADS / 32;
    __shared__ Softmax of_warp[warps];
    mine = mine.across_warp();
    const int lane = threadIdx.x % 32;
    if (lane == 0) of_warp[threadIdx.x / 32] = mine;
    __syncthreads();
    return (lane < warps ? of_warp[lane] : Softmax::of_nothing()).across_warp();
}

/// x = scale exp(x - most), from the row's end to its start.
__device__ __forceinline__ void scale_row(const Row& row, float most, float scale) {
    const int last = row.vectors - 1 - (int)threadIdx.x;
    for (int first = last; first >= 0; first -= DEPTH * THREADS) {
        Elements v[DEPTH];
#pragma unroll
        for (int j = 0; j < DEPTH; ++j) {
            if (first - j * THREADS >= 0) v[j].vector = row.vector(first - j * THREADS)->vector;
        }
#pragma unroll
        for (int j = 0; j < DEPTH; ++j) {
            if (first - j * THREADS < 0) break;
#pragma unroll
            for (int i = 0; i < vector_width; ++i) v[j].at[i] = element(scale * __expf(value(v[j].at[i]) - most));
            row.vector(first - j * THREADS)->vector = v[j].vector;
        }
    }
    if (threadIdx.x < row.ends) {
        Element* x = row.end(threadIdx.x);
        *x = element(scale * __expf(value(*x) - most));
    }
}

__device__ __forceinline__ void zero_row(const Row& row) {
    for (int i = threadIdx.x; i < row.vectors; i += THREADS) row.vector(i)->vector = Vector{0, 0, 0, 0};
    if (threadIdx.x < row.ends) *row.end(threadIdx.x) = 0;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) cross_entropy(
    Element* logits, const int* target, float* loss, int vocabulary, int gives_gradient, float scale) {
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
    if (threadIdx.x == 0 && exists) row.start[wanted] = element(factor * __expf(x - all.most) - scale);
}
