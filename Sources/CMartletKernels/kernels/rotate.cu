// RMSNorm over each head (where there is a weight), then rotation by position.
//
// Math       z = w (x r), r = 1 / sqrt(mean(x^2) + epsilon), or z = x without a weight
//            y[j] = z[j] c - z[j + D/2] s;  y[j + D/2] = z[j + D/2] c + z[j] s;  c, s of the row's position and j < D/2
//            backward: dz = dy turned back;  dx = r (w dz) - x r^3 <w dz, x> / D;  dw += sum of dz (x r)
// Shapes     x, y, dy, dx `element` [T, N, D] (y may be x, dx may be dy or x); w `parameter` [D]; c, s float [P, D/2];
//            positions int32 [T]; partial float [blocks, D], of a trained weight (reduce.cu adds its rows up).
// Budget     bytes 2 T N D elements forward, 3 backward (2 without a weight). T = 4096, N = 32, D = 128, bf16: 67 and 101 MB,
//            15.6 and 23 us at 4.3 TB/s. Bound by bytes. `lanes` threads share a head, with 8 elements of each half; forward
//            they take two heads of a token, so that more is under way and the tables are fetched once for both.
// Launch     -DHALF -DPARAMETER_HALF -DWIDTH=D (even, at most 512) -DTRAINS (a partial is wanted); lanes = the power of two
//            from D / 16 on; rotate <<<T ceil(N / 2) / (256 / lanes) rounded up, 256>>>, rotate_backward <<<T N / (256 / lanes)
//            rounded up, or fewer: as many as rows of partial, 256>>>. D a multiple of 16: 16-byte accesses; other sizes go
//            element by element.
// Numerics   float; fixed order of all sums, no atomics. Positions outside the tables are the caller's fault.
// Reference  CPUBackend.rotate, rotateBackward.
#include "elements.cuh"

constexpr int half = WIDTH / 2;
constexpr int lanes = half <= 8 ? 1 : half <= 16 ? 2 : half <= 32 ? 4 : half <= 64 ? 8 : half <= 128 ? 16 : 32;
constexpr bool whole = half % 8 == 0;

/// A thread's columns: 8 of each half of up to `group` heads of a token.
template <int group> struct Part {
    int token, head, column, count, heads;

    __device__ __forceinline__ Part(int block, int tokens, int heads) : heads(heads) {
        const int index = block * (256 / lanes) + threadIdx.x / lanes, groups = ceil_div(heads, group);
        token = index / groups;
        head = index % groups * group;
        column = threadIdx.x % lanes * 8;
        count = token < tokens ? half - column : 0;
    }
    __device__ __forceinline__ u64 at(int i = 0) const { return ((u64)token * heads + head + i) * WIDTH + column; }
    __device__ __forceinline__ int count_of(int i) const { return head + i < heads ? count : 0; }
};

/// Sixteen values of a head: 8 of each half.
struct Pair {
    float a[8], b[8];
};
template <class E> struct Stored {
    Eight<E> a, b;

    __device__ __forceinline__ void fetch(const E* p, int count) {
        a = load<whole>(p, count);
        b = load<whole>(p + half, count);
    }
    __device__ __forceinline__ Pair values() const {
        Pair pair;
        unpack(a, pair.a);
        unpack(b, pair.b);
        return pair;
    }
};

/// Cosines (a) and sines (b) of the token's position.
template <class Part> __device__ __forceinline__ Pair angles(
    const float* cosine_PJ, const float* sine_PJ, const int* positions_T, const Part& part) {
    const u64 at = part.count > 0 ? (u64)positions_T[part.token] * half + part.column : 0;
    Pair pair;
    unpack(load<whole>(cosine_PJ + at, part.count), pair.a);
    unpack(load<whole>(sine_PJ + at, part.count), pair.b);
    return pair;
}

/// The weight's part for a thread, zeros without one.
__device__ __forceinline__ Pair weights(const parameter* weight_D) {
    const int column = threadIdx.x % lanes * 8;
    Stored<parameter> weight = {};
    if (weight_D) weight.fetch(weight_D + column, half - column);
    return weight.values();
}

__device__ __forceinline__ float dot(const Pair& x, const Pair& y) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += x.a[j] * y.a[j] + x.b[j] * y.b[j];
    return sum;
}

/// `direction` -1 turns back.
__device__ __forceinline__ Pair turned(const Pair& z, const Pair& angles, float direction) {
    Pair y;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const float s = direction * angles.b[j];
        y.a[j] = z.a[j] * angles.a[j] - z.b[j] * s;
        y.b[j] = z.b[j] * angles.a[j] + z.a[j] * s;
    }
    return y;
}

extern "C" __global__ void __launch_bounds__(256, HALF ? 4 : 3) rotate(
    const element* x_TND, const parameter* weight_D, float epsilon, const float* cosine_PJ, const float* sine_PJ,
    const int* positions_T, element* y_TND, int tokens, int heads) {
    begin_kernel();
    const Part<2> part(blockIdx.x, tokens, heads);
    Stored<element> x[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) x[i].fetch(x_TND + part.at(i), part.count_of(i));
    const Pair turn = angles(cosine_PJ, sine_PJ, positions_T, part), weight = weights(weight_D);
    float scale[2] = {};
    if (weight_D) {
#pragma unroll
        for (int i = 0; i < 2; ++i) scale[i] = rsqrtf(group_sum<lanes>(dot(x[i].values(), x[i].values())) / WIDTH + epsilon);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        Pair z = x[i].values();
        if (weight_D) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                z.a[j] = weight.a[j] * (z.a[j] * scale[i]);
                z.b[j] = weight.b[j] * (z.b[j] * scale[i]);
            }
        }
        const Pair y = turned(z, turn, 1);
        store<whole>(y_TND + part.at(i), y.a, part.count_of(i));
        store<whole>(y_TND + part.at(i) + half, y.b, part.count_of(i));
    }
}

/// The block's row of the partial sums, from each thread's sums: groups of lanes in order.
__device__ __forceinline__ void add_up(const Pair& sums, float* partial) {
    __shared__ float all[256 / lanes][2 * 8 * lanes];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        all[threadIdx.x / lanes][threadIdx.x % lanes * 8 + j] = sums.a[j];
        all[threadIdx.x / lanes][(lanes + threadIdx.x % lanes) * 8 + j] = sums.b[j];
    }
    __syncthreads();
    for (int column = threadIdx.x; column < WIDTH; column += 256) {
        const int place = column < half ? column : column - half + 8 * lanes;
        float sum = 0;
        for (int group = 0; group < 256 / lanes; ++group) sum += all[group][place];
        partial[(u64)blockIdx.x * WIDTH + column] = sum;
    }
}

/// The gradient of x from that of z; adds to the weight's.
__device__ __forceinline__ Pair normalize_backward(const Pair& x, const Pair& weight, float epsilon, Pair dz, Pair& dweight) {
    const float scale = rsqrtf(group_sum<lanes>(dot(x, x)) / WIDTH + epsilon);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        dweight.a[j] += dz.a[j] * (x.a[j] * scale);
        dweight.b[j] += dz.b[j] * (x.b[j] * scale);
        dz.a[j] *= weight.a[j];
        dz.b[j] *= weight.b[j];
    }
    const float pull = group_sum<lanes>(dot(dz, x)) / WIDTH * scale * scale * scale;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        dz.a[j] = dz.a[j] * scale - x.a[j] * pull;
        dz.b[j] = dz.b[j] * scale - x.b[j] * pull;
    }
    return dz;
}

extern "C" __global__ void __launch_bounds__(256) rotate_backward(
    const element* x_TND, const parameter* weight_D, float epsilon, const float* cosine_PJ, const float* sine_PJ,
    const int* positions_T, const element* dy_TND, element* dx_TND, float* partial, int tokens, int heads) {
    begin_kernel();
    const Pair weight = weights(weight_D);
    Pair dweight = {};
    const int blocks = ceil_div(tokens * heads, 256 / lanes);
    for (int block = blockIdx.x; block < blocks; block += gridDim.x) {
        const Part<1> part(block, tokens, heads);
        Stored<element> dy, x = {};
        dy.fetch(dy_TND + part.at(), part.count);
        if (weight_D) x.fetch(x_TND + part.at(), part.count);
        Pair dz = turned(dy.values(), angles(cosine_PJ, sine_PJ, positions_T, part), -1);
        if (weight_D) dz = normalize_backward(x.values(), weight, epsilon, dz, dweight);
        store<whole>(dx_TND + part.at(), dz.a, part.count);
        store<whole>(dx_TND + part.at() + half, dz.b, part.count);
    }
#if TRAINS
    add_up(dweight, partial);
#endif
}
