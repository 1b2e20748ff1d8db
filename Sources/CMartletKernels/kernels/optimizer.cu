// What is done to all parameters at once: zeros, sums of squares, rounding to bf16, AdamW.
//
// Math       AdamW: g = gradient gradientScale; m = m beta1 + g (1 - beta1); v = v beta2 + g g (1 - beta2);
//            p = p (1 - lr decay) - m / (sqrt(v) root + epsilon) size, size = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t).
// Shapes     a table of float tensors of any sizes (Entry), cut into chunks of `chunk` elements (a multiple of 4), the last of each
//            tensor shorter; owner int32 [chunks]: the tensor of each chunk; partial double [chunks]; sums double [tensors].
// Budget     AdamW 28 bytes an element, squares 4, zeros 4; at 4.3 TB/s 640 M elements take 4.2, 0.6 and 0.6 ms. Bound by bytes.
// Launch     `zero_all`, `round_all` (to bf16 at `gradient`), `square_partials`, `adamw` <<<chunks, 256>>>; `square_sums` <<<tensors, 256>>>.
// Numerics   AdamW rounds after every operation, as the reference does. Squares and sums are double; a chunk's sum depends on the
//            chunk only, and a tensor's chunks are added in a fixed order.
// Reference  CPUBackend.adamW, sumsOfSquares.
#include "common.cuh"

/// A tensor of the table; the last three are for AdamW only.
struct Entry {
    float* value;
    const float* gradient;
    float* first_moment;
    float* second_moment;
    u64 count;
    float decay;
    /// Its first chunk in the launch.
    int first_chunk;
};

struct alignas(16) Four {
    float at[4];
};

/// The part of a tensor that a block works on.
struct Part {
    const Entry& entry;
    u64 start;
    int count;

    __device__ __forceinline__ Part(const Entry* entries, const int* owner, int chunk)
        : entry(entries[owner[blockIdx.x]]) {
        start = (u64)((int)blockIdx.x - entry.first_chunk) * chunk;
        count = (int)min((u64)chunk, entry.count - start);
    }
    /// Elements that can be taken four at a time; none where a tensor is not aligned.
    __device__ __forceinline__ int whole(u64 addresses) const { return addresses % 16 == 0 ? count / 4 * 4 : 0; }
};

extern "C" __global__ void __launch_bounds__(256) zero_all(const Entry* entries, const int* owner, int chunk) {
    const Part part(entries, owner, chunk);
    float* x = part.entry.value + part.start;
    const int whole = part.whole((u64)x);
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < whole; i += 1024) *(Four*)(x + i) = Four{};
    for (int i = whole + threadIdx.x; i < part.count; i += 256) x[i] = 0;
}

extern "C" __global__ void __launch_bounds__(256) round_all(const Entry* entries, const int* owner, int chunk) {
    const Part part(entries, owner, chunk);
    const float* x = part.entry.value + part.start;
    bf16* y = (bf16*)part.entry.gradient + part.start;
    const int whole = part.whole((u64)x | (u64)y << 1);
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < whole; i += 1024) {
        const Four v = *(const Four*)(x + i);
        *(uint2*)(y + i) = make_uint2(pack(v.at[0], v.at[1]), pack(v.at[2], v.at[3]));
    }
    for (int i = whole + threadIdx.x; i < part.count; i += 256) y[i] = (bf16)pack(x[i], 0.0f);
}

/// Sum over the block of 256 threads, in thread 0.
__device__ __forceinline__ double block_sum(double x) {
    __shared__ double of_warp[8];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += of_warp[i];
    return sum;
}

extern "C" __global__ void __launch_bounds__(256) square_partials(
    const Entry* entries, const int* owner, int chunk, double* partial) {
    const Part part(entries, owner, chunk);
    const float* x = part.entry.value + part.start;
    const int whole = part.whole((u64)x);
    double sum[4] = {};
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < whole; i += 1024) {
        const Four v = *(const Four*)(x + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += (double)v.at[j] * v.at[j];
    }
    for (int i = whole + threadIdx.x; i < part.count; i += 256) sum[0] += (double)x[i] * x[i];
    const double all = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (threadIdx.x == 0) partial[blockIdx.x] = all;
}

extern "C" __global__ void __launch_bounds__(256) square_sums(
    const Entry* entries, int chunk, const double* partial, double* sums) {
    const Entry& entry = entries[blockIdx.x];
    const int chunks = (int)((entry.count + chunk - 1) / chunk);
    double sum = 0;
    for (int i = threadIdx.x; i < chunks; i += 256) sum += partial[entry.first_chunk + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// The numbers of one step, the same for every element.
struct Step {
    float decay, beta1, beta2, rest1, rest2, size, root, epsilon, gradient_scale;

    __device__ __forceinline__ void update(float& p, float gradient, float& m, float& v) const {
        const float g = __fmul_rn(gradient, gradient_scale);
        m = __fadd_rn(__fmul_rn(m, beta1), __fmul_rn(g, rest1));
        v = __fadd_rn(__fmul_rn(v, beta2), __fmul_rn(__fmul_rn(g, g), rest2));
        const float root_v = __fadd_rn(__fmul_rn(__fsqrt_rn(v), root), epsilon);
        p = __fsub_rn(__fmul_rn(p, decay), __fmul_rn(__fdiv_rn(m, root_v), size));
    }
};

extern "C" __global__ void __launch_bounds__(256) adamw(
    const Entry* entries, const int* owner, int chunk, float learning_rate, float beta1, float beta2, float size,
    float root, float epsilon, float gradient_scale) {
    const Part part(entries, owner, chunk);
    const float decay = (float)(1.0 - (double)learning_rate * part.entry.decay);
    const Step step = {decay, beta1, beta2, 1.0f - beta1, 1.0f - beta2, size, root, epsilon, gradient_scale};
    float *p = part.entry.value + part.start, *m = part.entry.first_moment + part.start;
    float* v = part.entry.second_moment + part.start;
    const float* g = part.entry.gradient + part.start;
    const int whole = part.whole((u64)p | (u64)g | (u64)m | (u64)v);
    for (int i = threadIdx.x * 4; i < whole; i += 1024) {
        Four value = *(Four*)(p + i), first = *(Four*)(m + i), second = *(Four*)(v + i);
        const Four gradient = *(const Four*)(g + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) step.update(value.at[j], gradient.at[j], first.at[j], second.at[j]);
        *(Four*)(p + i) = value;
        *(Four*)(m + i) = first;
        *(Four*)(v + i) = second;
    }
    for (int i = whole + threadIdx.x; i < part.count; i += 256) step.update(p[i], g[i], m[i], v[i]);
}
