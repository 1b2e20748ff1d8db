// The words that the flash attention kernels share: tiles of rows in swizzled shared memory, and fragments of them.
//
// A tile is [rows, WIDTH] bfloat16, WIDTH a multiple of 64. Chunk c (16 bytes) of row r stands at chunk c ^ (r % 8), so that
// the eight rows of an 8 x 8 matrix lie in different banks, whether it is read along rows or transposed.
#pragma once
#include "common.cuh"

/// One block's work: a block of queries (forward) or of keys (backward) of one span.
struct alignas(16) Work {
    /// First row and number of the span's queries and keys.
    int query, queries, key, keys;
    /// Index of the block in its span.
    int block;
    /// Number of the span's first query block in the call.
    int tile;
    int unused[2];
};
static_assert(sizeof(Work) == 32, "AttentionWork");

/// 2^x
__device__ __forceinline__ float power2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// `ROWS` rows of WIDTH elements, `stride` elements apart, into a tile; those from `count` on become zeros.
template <int ROWS, int WIDTH, int THREADS>
__device__ __forceinline__ void fetch_rows(u32 tile, const bf16* from, u64 stride, int count) {
    constexpr int chunks = WIDTH / 8;
#pragma unroll
    for (int j = 0; j < ceil_div(ROWS * chunks, THREADS); ++j) {
        const int i = threadIdx.x + j * THREADS, r = i / chunks, c = i % chunks;
        if (ROWS * chunks % THREADS != 0 && i >= ROWS * chunks) break;
        copy_async(tile + r * WIDTH * 2 + ((c ^ (r % 8)) << 4), from + (r < count ? r * stride : 0) + c * 8, r < count);
    }
}
/// 4 bytes from global to shared memory, in the background; zero where not `valid`.
__device__ __forceinline__ void copy_async4(u32 to, const float* from, bool valid) {
#if __CUDA_ARCH__ < 800
    store_shared32(to, valid ? __float_as_uint(*from) : 0u);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
#endif
}

/// A lane's view of a tile: which row and chunk of a 16 x 16 piece its ldmatrix address names.
///
/// The four 8 x 8 matrices of a piece come in the order that mma wants: for an operand A [m, k] stored as rows of m, or an
/// operand B [k, n] stored as rows of k and read transposed, rows change first (`Rows`); for B stored as rows of n, or A stored
/// as rows of k and read transposed, chunks change first (`Chunks`).
enum First { Rows, Chunks };
template <int WIDTH, First FIRST> struct View {
    u32 row;
    u32 chunk;

    /// Pieces count from row `r` and column `c` of the tile.
    __device__ __forceinline__ View(u32 tile, int r, int c) {
        const int lane = threadIdx.x % 32;
        row = tile + (r + lane % 8 + (FIRST == Rows ? lane / 8 % 2 : lane / 16) * 8) * WIDTH * 2 + c / 64 * 128;
        chunk = ((c / 8 % 8 + (FIRST == Rows ? lane / 16 : lane / 8 % 2)) ^ (lane % 8)) << 4;
    }
    /// Where the lane reads for the piece at row `r`, column `c`: multiples of 16, known when compiled. Inside 64 columns `c` and
    /// the view's own column must have no bit in common.
    __device__ __forceinline__ u32 at(int r, int c) const { return row + r * WIDTH * 2 + c / 64 * 128 + (chunk ^ (c % 64 * 2)); }
};

template <bool TRANSPOSED> __device__ __forceinline__ void load(u32 (&r)[4], u32 address) {
    TRANSPOSED ? load_matrices_transposed(r, address) : load_matrices(r, address);
}

/// d[16 MT x 8 NT] += A[16 MT x 16 KT] B, both from shared memory. A is stored [m, k], or [k, m] where A_BY_K; B is stored
/// [n, k], or [k, n] where B_BY_K. Each 16 columns of d are `STEP` apart in B.
template <int MT, int NT, int KT, bool A_BY_K, bool B_BY_K, int STEP = 16, class A, class B>
__device__ __forceinline__ void multiply(float (&d)[MT][NT][4], const A& a, const B& b) {
#pragma unroll
    for (int k = 0; k < KT; ++k) {
        u32 x[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) load<A_BY_K>(x[m], A_BY_K ? a.at(16 * k, 16 * m) : a.at(16 * m, 16 * k));
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            u32 y[4];
            load<B_BY_K>(y, B_BY_K ? b.at(16 * k, n / 2 * STEP) : b.at(n / 2 * STEP, 16 * k));
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                mma_16_8_16(d[m][n], x[m][0], x[m][1], x[m][2], x[m][3], y[0], y[1]);
                mma_16_8_16(d[m][n + 1], x[m][0], x[m][1], x[m][2], x[m][3], y[2], y[3]);
            }
        }
    }
}
