// Bytes copied, and bytes set to zero.
//
// Math       y = x;  y = 0
// Shapes     any number of bytes, at any address; x and y do not overlap.
// Budget     2 bytes a byte copied, 1 a byte zeroed. Between two kernels the driver's own fill leaves a gap on either side, of
//            1.4 us; these leave none.
// Launch     <<<ceil(bytes / 16384), 256>>>: 64 bytes a thread.
// Numerics   exact.
// Reference  CPUBackend.set / zero.
#include "common.cuh"

constexpr int words = 4;
constexpr u64 block_bytes = 256 * words * sizeof(Vector);

template <bool copies> __device__ __forceinline__ void write_block(const u8* x, u8* y, u64 bytes) {
    const u64 first = blockIdx.x * block_bytes;
    if (((u64)x | (u64)y) % sizeof(Vector) != 0) {
        for (u64 at = first + threadIdx.x; at < first + block_bytes && at < bytes; at += 256) y[at] = copies ? x[at] : 0;
        return;
    }
    const auto place = [&](int i) { return first + (i * 256 + threadIdx.x) * sizeof(Vector); };
    Vector v[words] = {};
    if (copies) {
#pragma unroll
        for (int i = 0; i < words; ++i) {
            if (place(i) + sizeof(Vector) <= bytes) v[i] = load128_once(x + place(i));
        }
    }
#pragma unroll
    for (int i = 0; i < words; ++i) {
        if (place(i) + sizeof(Vector) <= bytes) {
            store128(y + place(i), v[i]);
        } else {
            for (u64 at = place(i); at < bytes; ++at) y[at] = copies ? x[at] : 0;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) copy_bytes(const u8* x, u8* y, u64 bytes) {
    begin_kernel();
    write_block<true>(x, y, bytes);
}

extern "C" __global__ void __launch_bounds__(256) zero_bytes(u8* y, u64 bytes) {
    begin_kernel();
    write_block<false>(nullptr, y, bytes);
}
