// The skinny products of projections' adapters, of up to three layers at once.
//
// Math       p_s = scale x A_s^T                                     -DTRANSPOSED=0
//            q_s = scale dy_s B_s                                    -DTRANSPOSED=1
// Shapes     x [T, I], A_s [r, I]; dy_s [T, O_s], B_s [O_s, r]; p_s, q_s [T, r]; all bf16. I and O_s multiples of 8, r of 16 (at
//            most 128). Any T.
// Budget     2 T r width FLOPs; bytes 2 T width of each source, and 2 r width of its matrices for each block, from L2. x of
//            Qwen3-30B-A3B at T = 4096: 17 MB, 4 us at 4.3 TB/s. Bound by bytes, and at small T by how many are on the way.
// Launch     -DTRANSPOSED -DRANK -DCOUNT (layers that share source0, COUNT r <= 64; else 1) -DROWS (of a block, 16 or 32) -DDEPTH
//            (of a warp's ring, 2 to 8); <<<(T / ROWS rounded up, sources), 256>>>, 512 DEPTH (ROWS + COUNT r) bytes of dynamic
//            shared memory. Warp w sums columns 32 (w + 8 i) ... of the block's rows.
// Numerics   float accumulators; the warps' sums are added in order: reproducible.
// Reference  CPUBackend.linear, linearBackward (p and q).
#include "common.cuh"

constexpr int groups = RANK / 8;
constexpr int all_groups = COUNT * groups;
constexpr int row_tiles = ROWS / 16;
/// A slice of 32 columns: rows of 64 bytes of the source, and behind them the matrices' rows of the same columns, or B's 32
/// rows of these numbers.
constexpr int source_bytes = ROWS * 64;
constexpr int slice_bytes = source_bytes + COUNT * RANK * 64;
static_assert(TRANSPOSED == 0 || COUNT == 1, "each dy has a block of its own");
static_assert(8 * row_tiles * all_groups * 512 <= 8 * DEPTH * slice_bytes, "the sums fit where the slices were");

/// Where chunk (16 bytes) `chunk` of row `row` stands: eight rows of one chunk meet no bank twice.
template <int units> __device__ __forceinline__ u32 place(int row, int chunk) {
    const int turn = units == 2 ? row / 4 % 2 : units == 4 ? row / 2 % 4 : units % 8 == 0 ? row % 8 : 0;
    return (row * units + (chunk ^ turn)) * 16;
}

struct Operands {
    const bf16* source;
    const bf16* matrix[3];
    int row, rows, width;

    /// One slice, by the warp's lanes.
    __device__ __forceinline__ void fetch(u32 to, int slice) const {
        const int lane = threadIdx.x % 32, column = slice * 32 + lane % 4 * 8;
#pragma unroll
        for (int i = 0; i < ROWS / 8; ++i) {
            const int r = lane / 4 + 8 * i;
            const bool valid = row + r < rows && column < width;
            copy_async(to + place<4>(r, lane % 4), source + (valid ? (u64)(row + r) * width + column : 0), valid);
        }
#pragma unroll
        for (int g = 0; g < all_groups; ++g) {
            if (TRANSPOSED) {
                const int i = lane + 32 * g, r = i / groups;
                const bool valid = slice * 32 + r < width;
                const u64 from = valid ? (u64)(slice * 32 + r) * RANK + i % groups * 8 : 0;
                copy_async(to + source_bytes + place<groups>(r, i % groups), matrix[0] + from, valid);
            } else {
                const int n = g % groups * 8 + lane / 4;
                const bool valid = column < width;
                copy_async(to + source_bytes + place<4>(8 * g + lane / 4, lane % 4),
                           matrix[g / groups] + (valid ? (u64)n * width + column : 0), valid);
            }
        }
    }
};

__device__ __forceinline__ void multiply(float (&d)[row_tiles][all_groups][4], u32 slice) {
    const int lane = threadIdx.x % 32;
    u32 a[row_tiles][2][4];
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
        for (int k = 0; k < 2; ++k) load_matrices(a[m][k], slice + place<4>(16 * m + lane % 16, 2 * k + lane / 16));
    }
#pragma unroll
    for (int g = 0; g < all_groups; ++g) {
        u32 b[4];
        if (TRANSPOSED) load_matrices_transposed(b, slice + source_bytes + place<groups>(lane, g));
        else load_matrices(b, slice + source_bytes + place<4>(8 * g + lane % 8, lane / 8));
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                mma_16_8_16(d[m][g], a[m][k][0], a[m][k][1], a[m][k][2], a[m][k][3], b[2 * k], b[2 * k + 1]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) projection_low(
    const bf16* source0, const bf16* source1, const bf16* source2, const bf16* matrix0, const bf16* matrix1,
    const bf16* matrix2, bf16* out0, bf16* out1, bf16* out2, int width0, int width1, int width2, int rows, float scale) {
    begin_kernel();
    extern __shared__ __align__(128) u8 memory[];
    const int job = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Operands operands = {
        job == 0 ? source0 : job == 1 ? source1 : source2,
        {job == 0 ? matrix0 : job == 1 ? matrix1 : matrix2, matrix1, matrix2},
        (int)blockIdx.x * ROWS, rows, job == 0 ? width0 : job == 1 ? width1 : width2};
    const int slices = ceil_div(operands.width, 32);
    const u32 ring = shared_address(memory) + warp * DEPTH * slice_bytes;
    float d[row_tiles][all_groups][4] = {};
    int ahead = warp, slot = 0;
    auto fetch_next = [&] {
        if (ahead < slices) operands.fetch(ring + slot * slice_bytes, ahead);
        copy_async_commit();
        ahead += 8;
        slot = slot + 1 == DEPTH ? 0 : slot + 1;
    };
#pragma unroll
    for (int i = 0; i < DEPTH - 1; ++i) fetch_next();
#pragma unroll 1
    for (int slice = warp, at = 0; slice < slices; slice += 8) {
        copy_async_wait<DEPTH - 2>();
        __syncwarp();
        fetch_next();
        multiply(d, ring + at * slice_bytes);
        at = at + 1 == DEPTH ? 0 : at + 1;
    }
    copy_async_wait<0>();
    __syncthreads();
    // Value i of every lane of every warp.
    constexpr int values = 4 * row_tiles * all_groups;
    float* partial = (float*)memory;
#pragma unroll
    for (int i = 0; i < values; ++i) {
        partial[(warp * values + i) * 32 + lane] = d[i / 4 / all_groups][i / 4 % all_groups][i % 4];
    }
    __syncthreads();
    // Values 2 i and 2 i + 1 stand in neighbouring columns.
#pragma unroll
    for (int i = warp; i < values / 2; i += 8) {
        float x = 0, y = 0;
#pragma unroll
        for (int w = 0; w < 8; ++w) {
            x += partial[(w * values + 2 * i) * 32 + lane];
            y += partial[(w * values + 2 * i + 1) * 32 + lane];
        }
        const int g = i / 2 % all_groups, s = job + g / groups;
        const int row = operands.row + i / 2 / all_groups * 16 + i % 2 * 8 + lane / 4;
        bf16* out = s == 0 ? out0 : s == 1 ? out1 : out2;
        if (row < rows) ((u32*)out)[((u64)row * RANK + g % groups * 8 + lane % 4 * 2) / 2] = pack(scale * x, scale * y);
    }
}
