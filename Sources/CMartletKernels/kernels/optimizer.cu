// What is done to all parameters at once: zeros, sums of squares, AdamW with moments in float or in 8 bits, masters in halves.
//
// Math       AdamW: g = gradient gradientScale; m = m beta1 + g (1 - beta1); v = v beta2 + g g (1 - beta2);
//            p = p (1 - lr decay) - m / (sqrt(v) root + epsilon) size, size = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t).
//            8 bits: a moment is value[code] scale, scale the largest magnitude of its block of 256; a block is decoded, updated and
//            coded again, to the nearest value (Dettmers et al. 2022, arXiv 2110.02861; MomentTable.swift tells the values).
//            Halves: a master's 32 bits are (value << 16) + rest, value the nearest bf16 (ties away from zero), rest int16: what the
//            other kernels read is updated in place, and nothing is lost (Master.swift).
// Shapes     a table of float tensors of any sizes (Entry), cut into chunks of `chunk` elements (a multiple of 4), the last of each
//            tensor shorter; owner int32 [chunks]: the tensor of each chunk; partial double [chunks]; sums double [tensors].
//            8 bits: moments are u8, scales float [ceil(count / 256)]; chunks are whole blocks.
// Budget     AdamW 28 bytes an element, squares 4, zeros 4; at 4.3 TB/s 640 M elements take 4.2, 0.6 and 0.6 ms. Bound by bytes.
//            AdamW in 8 bits 16 bytes: 2.4 ms; its some 90 instructions take 2. A warp owns a block, 8 elements a thread; 4 KB shared.
//            Any tensor may lie in pinned host memory: then its bytes go over the bus, once.
// Launch     `zero_all`, `split_all` (floats at `gradient` into the halves), `square_partials`, `adamw`, `adamw_8bit` and
//            these of masters in halves, `adamw_split`, `adamw_8bit_split` <<<chunks, 256>>>; `square_sums` <<<tensors, 256>>>.
// Numerics   AdamW rounds after every operation, as the reference does; in 8 bits its bytes are the reference's. Squares and sums are
//            double; a chunk's sum depends on the chunk only, and a tensor's chunks are added in a fixed order.
// Reference  CPUBackend.adamW, split, sumsOfSquares.
#include "common.cuh"

/// A tensor of the table; moments, scales and decay are for AdamW only.
struct Entry {
    /// bf16 of a master in halves.
    float* value;
    const float* gradient;
    float* first_moment;
    float* second_moment;
    /// Of moments in 8 bits.
    float *first_scale, *second_scale;
    /// Of a master in halves.
    u16* rest;
    u64 count;
    float decay;
    /// Its first chunk in the launch.
    int first_chunk;
};
static_assert(sizeof(Entry) == 72, "TensorTables.Entry");

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
    begin_kernel();
    const Part part(entries, owner, chunk);
    float* x = part.entry.value + part.start;
    const int whole = part.whole((u64)x);
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < whole; i += 1024) *(Four*)(x + i) = Four{};
    for (int i = whole + threadIdx.x; i < part.count; i += 256) x[i] = 0;
}

/// Four neighbours, as one `Words`; with WHOLE false only the first `count`, and zeros.
template <bool WHOLE, typename Words, typename T> __device__ __forceinline__ Words take(const T* p, int count) {
    if (WHOLE) return *(const Words*)p;
    Words x = {};
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (j < count) ((T*)&x)[j] = p[j];
    return x;
}
template <bool WHOLE, typename Words, typename T> __device__ __forceinline__ void put(T* p, Words x, int count) {
    if (WHOLE) *(Words*)p = x;
    else
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < count) p[j] = ((T*)&x)[j];
}

// MARK: Masters

/// The trained numbers of a part: floats, or in halves.
template <bool SPLIT> struct Master {
    void* value;
    u16* rest;

    __device__ __forceinline__ Master(const Part& part)
        : value((u8*)part.entry.value + part.start * (SPLIT ? 2 : 4)), rest(part.entry.rest + part.start) {}

    /// What must be a multiple of 16 for four at a time.
    __device__ __forceinline__ u64 addresses() const { return SPLIT ? ((u64)value | (u64)rest) << 1 : (u64)value; }

    template <bool WHOLE> __device__ __forceinline__ Four take(int i, int count) const {
        if constexpr (SPLIT) {
            const uint2 upper = ::take<WHOLE, uint2>((const u16*)value + i, count), lower = ::take<WHOLE, uint2>(rest + i, count);
            return Four{join<0>(upper.x, lower.x), join<1>(upper.x, lower.x), join<0>(upper.y, lower.y), join<1>(upper.y, lower.y)};
        } else {
            return ::take<WHOLE, Four>((const float*)value + i, count);
        }
    }
    template <bool WHOLE> __device__ __forceinline__ void put(int i, Four x, int count) const {
        if constexpr (SPLIT) {
            u32 bits[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) bits[j] = x.at[j] == x.at[j] ? __float_as_uint(x.at[j]) : 0x7fc00000u;
            ::put<WHOLE>((u16*)value + i, make_uint2(upper(bits[0], bits[1]), upper(bits[2], bits[3])), count);
            ::put<WHOLE>(rest + i, make_uint2(__byte_perm(bits[0], bits[1], 0x5410), __byte_perm(bits[2], bits[3], 0x5410)), count);
        } else {
            ::put<WHOLE>((float*)value + i, x, count);
        }
    }

    template <int AT> __device__ static __forceinline__ float join(u32 upper, u32 lower) {
        const u32 high = AT ? upper & 0xffff0000u : upper << 16;
        return __uint_as_float(high + (u32)((int)(AT ? lower : lower << 16) >> 16));
    }
    /// The upper halves of both, rounded.
    __device__ static __forceinline__ u32 upper(u32 first, u32 second) {
        return __byte_perm(first + 0x8000u, second + 0x8000u, 0x7632);
    }
};

extern "C" __global__ void __launch_bounds__(256) split_all(const Entry* entries, const int* owner, int chunk) {
    begin_kernel();
    const Part part(entries, owner, chunk);
    const Master<true> master(part);
    const float* x = part.entry.gradient + part.start;
    const int whole = part.whole((u64)x | master.addresses());
    for (int i = threadIdx.x * 4; i < whole; i += 1024) master.put<true>(i, *(const Four*)(x + i), 4);
    for (int i = whole + threadIdx.x; i < part.count; i += 256) master.put<false>(i, Four{x[i]}, 1);
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
    begin_kernel();
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
    begin_kernel();
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

    __device__ __forceinline__ Step(const Entry& entry, float learning_rate, float beta1, float beta2, float size, float root,
                                    float epsilon, float gradient_scale)
        : decay((float)(1.0 - (double)learning_rate * entry.decay)), beta1(beta1), beta2(beta2), rest1(1.0f - beta1),
          rest2(1.0f - beta2), size(size), root(root), epsilon(epsilon), gradient_scale(gradient_scale) {}

    __device__ __forceinline__ void update(float& p, float gradient, float& m, float& v) const {
        const float g = __fmul_rn(gradient, gradient_scale);
        m = __fadd_rn(__fmul_rn(m, beta1), __fmul_rn(g, rest1));
        v = __fadd_rn(__fmul_rn(v, beta2), __fmul_rn(__fmul_rn(g, g), rest2));
        const float root_v = __fadd_rn(__fmul_rn(__fsqrt_rn(v), root), epsilon);
        p = __fsub_rn(__fmul_rn(p, decay), __fmul_rn(__fdiv_rn(m, root_v), size));
    }
};

template <bool SPLIT> __device__ __forceinline__ void update_all(const Part& part, const Step& step) {
    const Master<SPLIT> p(part);
    float *m = part.entry.first_moment + part.start, *v = part.entry.second_moment + part.start;
    const float* g = part.entry.gradient + part.start;
    const int whole = part.whole(p.addresses() | (u64)g | (u64)m | (u64)v);
    for (int i = threadIdx.x * 4; i < whole; i += 1024) {
        Four value = p.template take<true>(i, 4), first = *(Four*)(m + i), second = *(Four*)(v + i);
        const Four gradient = *(const Four*)(g + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) step.update(value.at[j], gradient.at[j], first.at[j], second.at[j]);
        p.template put<true>(i, value, 4);
        *(Four*)(m + i) = first;
        *(Four*)(v + i) = second;
    }
    for (int i = whole + threadIdx.x; i < part.count; i += 256) {
        Four value = p.template take<false>(i, 1);
        step.update(value.at[0], g[i], m[i], v[i]);
        p.template put<false>(i, value, 1);
    }
}

#define NUMBERS float learning_rate, float beta1, float beta2, float size, float root, float epsilon, float gradient_scale

extern "C" __global__ void __launch_bounds__(256) adamw(const Entry* entries, const int* owner, int chunk, NUMBERS) {
    begin_kernel();
    const Part part(entries, owner, chunk);
    update_all<false>(part, Step(part.entry, learning_rate, beta1, beta2, size, root, epsilon, gradient_scale));
}

extern "C" __global__ void __launch_bounds__(256) adamw_split(const Entry* entries, const int* owner, int chunk, NUMBERS) {
    begin_kernel();
    const Part part(entries, owner, chunk);
    update_all<true>(part, Step(part.entry, learning_rate, beta1, beta2, size, root, epsilon, gradient_scale));
}

// MARK: Moments in 8 bits

/// The values of a moment's codes, ascending, and what is coded as each: code c is for (bound[c], bound[c + 1]].
template <bool SIGNED> struct Codes {
    /// The highest of the decades 0 ... top; decade d has the 2^d places from 2^d on, the place behind the last is 1.
    static constexpr int top = SIGNED ? 6 : 7;
    float value[256], bound[257];

    __device__ static float magnitude(int place) {
        const int decade = 31 - __clz(place);
        if (decade > top) return 1.0f;
        float power = 1.0f;
        for (int d = decade; d < top; ++d) power = __fmul_rn(power, 0.1f);
        const float middle = ((float)place + 0.5f) / (float)(1 << decade) - 1.0f;  // exact
        return __fmul_rn(power, __fadd_rn(0.1f, __fmul_rn(0.9f, middle)));
    }
    __device__ static float value_of(int code) {
        if (!SIGNED) return code == 0 ? 0.0f : magnitude(code + 1);
        return code == 127 ? 0.0f : code < 127 ? -magnitude(127 - code) : magnitude(code - 127);
    }

    /// By 256 threads.
    __device__ void fill() {
        const int code = threadIdx.x;
        value[code] = value_of(code);
        bound[code] = code == 0 ? -infinity() : __fmul_rn(__fadd_rn(value_of(code - 1), value_of(code)), 0.5f);
        // A second moment is divided by: what is not 0 must not become 0.
        if (!SIGNED && code == 1) bound[1] = 0;
        if (code == 255) bound[256] = infinity();
    }

    /// A guess by the logarithm, one off at most, then the bounds.
    __device__ __forceinline__ u32 code_of(float x) const {
        const float decade = fminf(fmaxf(ceilf(__log2f(fabsf(x)) * 0.30103f), -6.0f), 0.0f);  // x in 10^(decade - 1) ... 10^decade
        const int count = 1 << (top + (int)decade);
        const float within = (fabsf(x) * exp2_near(decade * -3.3219281f) - 0.1f) * ((float)count * 1.1111111f);
        const int place = count + min(max((int)within, 0), count - 1);
        int code = !SIGNED ? place - 1 : x < 0 ? 127 - place : 127 + place;
        if (x <= bound[code]) return code - 1;
        return x > bound[code + 1] ? code + 1 : code;
    }

    __device__ static __forceinline__ float exp2_near(float x) {
        float y;
        asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
};

/// One moment of a part. A warp takes a block of 256: a thread has four elements from `i` on, and four that are 128 behind them.
template <bool SIGNED> struct Moment {
    const Codes<SIGNED>& table;
    u8* code;
    float* scale;

    template <bool WHOLE> __device__ __forceinline__ void decode(Four (&x)[2], int i, int count) const {
        const float size = scale[i / 256];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u32 codes = take<WHOLE, u32>(code + i + 128 * half, count - 128 * half);
#pragma unroll
            for (int j = 0; j < 4; ++j) x[half].at[j] = __fmul_rn(table.value[codes >> 8 * j & 255], size);
        }
    }

    /// By bits, so that a NaN is the largest of all and stays.
    __device__ static __forceinline__ float largest(const Four (&x)[2]) {
        u32 bits = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) bits = max(bits, __float_as_uint(x[j / 4].at[j % 4]) & 0x7fffffffu);
        return __uint_as_float(warp_largest(bits));
    }

    template <bool WHOLE> __device__ __forceinline__ void encode(const Four (&x)[2], int i, int count) const {
        const float size = largest(x);
        if (threadIdx.x % 32 == 0) scale[i / 256] = size;
        // The inverse of a denormal could overflow: such a block becomes zeros.
        const float inverse = size >= 1.17549435e-38f ? __frcp_rn(size) : 0.0f;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32 codes = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) codes |= table.code_of(__fmul_rn(x[half].at[j], inverse)) << 8 * j;
            put<WHOLE>(code + i + 128 * half, codes, count - 128 * half);
        }
    }
};

/// A block of 256 elements by a warp; `count` are left from `i` on.
template <bool WHOLE, bool SPLIT> __device__ __forceinline__ void update_block(
    const Step& step, const Master<SPLIT>& p, const float* g, const Moment<true>& m, const Moment<false>& v, int i, int count) {
    Four first[2], second[2];
    m.template decode<WHOLE>(first, i, count);
    v.template decode<WHOLE>(second, i, count);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = i + 128 * half, left = count - 128 * half;
        Four value = p.template take<WHOLE>(at, left);
        const Four gradient = take<WHOLE, Four>(g + at, left);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            step.update(value.at[j], gradient.at[j], first[half].at[j], second[half].at[j]);
            // Behind the end there is nothing that may be the largest.
            if (!WHOLE && j >= left) first[half].at[j] = second[half].at[j] = 0;
        }
        p.template put<WHOLE>(at, value, left);
    }
    m.template encode<WHOLE>(first, i, count);
    v.template encode<WHOLE>(second, i, count);
}

template <bool SPLIT> __device__ __forceinline__ void update_blocks(
    const Part& part, const Step& step, Codes<true>& with_sign, Codes<false>& without) {
    with_sign.fill();
    without.fill();
    __syncthreads();
    const Entry& entry = part.entry;
    const Master<SPLIT> p(part);
    const float* g = entry.gradient + part.start;
    const Moment<true> m = {with_sign, (u8*)entry.first_moment + part.start, entry.first_scale + part.start / 256};
    const Moment<false> v = {without, (u8*)entry.second_moment + part.start, entry.second_scale + part.start / 256};
    // Codes go by 4 bytes where floats go by 16.
    const int whole = part.whole(p.addresses() | (u64)g | (u64)m.code << 2 | (u64)v.code << 2);
    const int lane = threadIdx.x % 32 * 4;
    for (int block = threadIdx.x / 32 * 256; block < part.count; block += 8 * 256) {
        if (block + 256 <= whole) update_block<true>(step, p, g, m, v, block + lane, part.count - block - lane);
        else update_block<false>(step, p, g, m, v, block + lane, part.count - block - lane);
    }
}

extern "C" __global__ void __launch_bounds__(256) adamw_8bit(const Entry* entries, const int* owner, int chunk, NUMBERS) {
    begin_kernel();
    __shared__ Codes<true> with_sign;
    __shared__ Codes<false> without;
    const Part part(entries, owner, chunk);
    const Step step(part.entry, learning_rate, beta1, beta2, size, root, epsilon, gradient_scale);
    update_blocks<false>(part, step, with_sign, without);
}

extern "C" __global__ void __launch_bounds__(256) adamw_8bit_split(const Entry* entries, const int* owner, int chunk, NUMBERS) {
    begin_kernel();
    __shared__ Codes<true> with_sign;
    __shared__ Codes<false> without;
    const Part part(entries, owner, chunk);
    const Step step(part.entry, learning_rate, beta1, beta2, size, root, epsilon, gradient_scale);
    update_blocks<true>(part, step, with_sign, without);
}
