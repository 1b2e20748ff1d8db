// The gradients of the experts' adapters: sums over an expert's rows of outer products.
//
// Math       dM_e (+)= sum over rows of e of u[row]^T v[row]; dA = q^T x, dB = dy^T p (either weighted in u, lora_project.cu)
// Shapes     u bf16 [R, A]; v bf16 [T, C] (gathered) or [R, C]; dM float [E, A, C], or [E, C, A] with -DOUTPUT_MAJOR.
//            C a multiple of 8; A of 16. dM has the first OWN_RANK of A, if that is given.
// Budget     2 R A C FLOPs; bytes 2 R C (1 + A / 128) + 4 E A C, and as many again where it `adds`. Bound by bytes.
// Launch     -DGATHERS -DWIDTH=C -DRANK=A -DTOP_K -DOUTPUT_MAJOR -DDEPTH (pieces of 64 rows in shared memory);
//            <<<(C / 128 rounded up, E), 128>>>, DEPTH (16384 + 128 A) bytes of dynamic shared memory.
// Numerics   one block owns a piece of dM and walks the rows in order: reproducible. Without `adds` what stands in dM is not
//            read: 0 + sum is written, and zeros for an expert without rows.
// Reference  CPUBackend.expertsBackward (innerColumns, hiddenColumns).
#include "common.cuh"

#ifndef DEPTH
#define DEPTH 2
#endif
constexpr int depth = DEPTH;
#ifndef OWN_RANK
#define OWN_RANK RANK
#endif
constexpr int v_bytes = 64 * 256;
constexpr int u_bytes = 64 * RANK * 2;
constexpr int groups = RANK / 8;

/// Where the rows of v stand that a thread will fetch: thread i takes 16-byte chunk i % 16 of rows i / 16 + 8 j of 64.
struct Rows {
    u32 at[8];

    __device__ __forceinline__ void find(const int* order, int row, int count) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int r = threadIdx.x / 16 + 8 * j;
            if (r < count) at[j] = GATHERS ? order[row + r] / TOP_K : row + r;
        }
    }
};

/// 64 rows of v (128 columns, rows of 256 bytes, swizzled) and of u, by all threads.
__device__ __forceinline__ void fetch(
    u32 shared, const bf16* u, const bf16* v, const Rows& rows, int row, int count, int column) {
    const int chunk = threadIdx.x % 16;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const int r = threadIdx.x / 16 + 8 * j;
        const bool valid = r < count && column + chunk * 8 < WIDTH;
        const u64 from = valid ? (u64)rows.at[j] * WIDTH + column + chunk * 8 : 0;
        copy_async(shared + r * 256 + ((chunk ^ (r % 8)) << 4), v + from, valid);
    }
    for (int i = threadIdx.x; i < 64 * groups; i += 128) {
        const int r = i / groups;
        const u64 from = r < count ? (u64)(row + r) * RANK + i % groups * 8 : 0;
        copy_async(shared + v_bytes + i * 16, u + from, r < count);
    }
    copy_async_commit();
}

/// 16 rows into a warp's 32 columns.
__device__ __forceinline__ void accumulate(float (&d)[2][groups][4], u32 shared, int row) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int r = row + lane % 8 + lane / 16 * 8;
    u32 a[2][4], b[4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        const int chunk = warp * 4 + m * 2 + lane / 8 % 2;
        load_matrices_transposed(a[m], shared + r * 256 + ((chunk ^ (r % 8)) << 4));
    }
#pragma unroll
    for (int n = 0; n < groups; n += 2) {
        const int u_row = row + lane % 8 + lane / 8 % 2 * 8;
        load_matrices_transposed(b, shared + v_bytes + u_row * RANK * 2 + (n + lane / 16) * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            mma_16_8_16(d[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
            mma_16_8_16(d[m][n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) lora_gradient(
    const bf16* u_RA, const bf16* v, const int* order, const int* offset_E1, float* gradient, int adds) {
    begin_kernel();
    extern __shared__ __align__(128) u8 memory[];
    const u32 shared = shared_address(memory);
    const int expert = blockIdx.y, column = blockIdx.x * 128;
    const int start = offset_E1[expert], count = offset_E1[expert + 1] - start;
    const int blocks = ceil_div(count, 64);
    if (blocks == 0 && adds) return;
    float d[2][groups][4] = {};
    // The indices of the next fetch are on their way before it starts.
    Rows rows;
    rows.find(order, start, count);
    int ahead = 0;
    auto fetch_next = [&] {
        if (ahead < blocks) {
            const int row = 64 * ahead;
            fetch(shared + ahead % depth * (v_bytes + u_bytes), u_RA, v, rows, start + row, count - row, column);
            rows.find(order, start + row + 64, count - row - 64);
        } else {
            copy_async_commit();
        }
        ++ahead;
    };
#pragma unroll
    for (int i = 0; i < depth - 1; ++i) fetch_next();
    for (int i = 0; i < blocks; ++i) {
        copy_async_wait<depth - 2>();
        __syncthreads();
        fetch_next();
#pragma unroll
        for (int row = 0; row < 64; row += 16) accumulate(d, shared + i % depth * (v_bytes + u_bytes), row);
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* out = gradient + (u64)expert * OWN_RANK * WIDTH;
    const auto each = [&](auto use) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int i = 0; i < 2 * groups * 2; ++i) {
                const int half = i / 2 % 2, rank = i / 4 * 8 + lane % 4 * 2 + i % 2;
                const int c = column + warp * 32 + m * 16 + lane / 4 + 8 * half;
                const u64 at = OUTPUT_MAJOR ? (u64)c * OWN_RANK + rank : (u64)rank * WIDTH + c;
                if (c < WIDTH && rank < OWN_RANK) use(out[at], d[m][i / 4][i % 4]);
            }
        }
    };
    // All loads are under way before the first store.
    if (adds) each([](const float& before, float& sum) { sum += before; });
    each([](float& place, const float& sum) { place = 0.0f + sum; });
}
