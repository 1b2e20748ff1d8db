// The skinny products of the experts' adapters: p = s x A^T, and in the backward pass q = s dy B.
//
// Math       p_RA[row] = s * source[row] M_e^T; weighted_RA[row] = weight[row] * p (for the adapters' gradients)
// Shapes     source [T, width] rows of tokens (gathered) or [R, width]; M [E, A, width]: A itself, or B transposed
//            (lora_pack.cu); p bf16 [R, A]; width a multiple of 32 -- or of 8 with zeros read past the end; A a multiple of 8.
// Budget     2 R A width FLOPs; bytes 2 R width (gathered ones mostly from L2) + 2 E A width. Bound by bytes.
// Launch     -DGATHERS -DWIDTH -DRANK -DTOP_K -DBLOCKS (so many fit on a multiprocessor; of fewer, each has more loads under
//            way); <<<2 (R / 128 + E), 256>>>: a block takes 64 rows of the tile map, warp w rows 16 (w % 4) ... and half w / 4
//            of the width.
// Numerics   float accumulators, the two halves added in order: reproducible.
// Reference  CPUBackend.experts (p1, p2), expertsBackward (q1, q2).
#include "common.cuh"

#ifndef BLOCKS
#define BLOCKS 2
#endif
constexpr int groups = RANK / 8;
/// 32 columns at a time; each half of the width is a whole number of them.
constexpr int chunks = ceil_div(WIDTH, 32);
constexpr int half_chunks = ceil_div(chunks, 2);

/// Sums of 16 rows over the chunks first ..< last. A lane reads 8 consecutive columns of a row, and the two mma take columns
/// (0 1, 2 3) and (4 5, 6 7) of these as their pairs of K: any order of K is right if both operands follow it.
__device__ __forceinline__ void sum_chunks(
    float (&d)[groups][4], const bf16* upper, const bf16* lower, const bf16* matrix, int first, int last) {
    const Vector zero = {0, 0, 0, 0};
#pragma unroll 4
    for (int i = first; i < last; ++i) {
        const int column = i * 32 + threadIdx.x % 4 * 8;
        const bool inside = WIDTH % 32 == 0 || column < WIDTH;
        const Vector a = inside ? load128(upper + column) : zero;
        const Vector b = inside ? load128(lower + column) : zero;
#pragma unroll
        for (int n = 0; n < groups; ++n) {
            const Vector m = inside ? load128(matrix + n * 8 * WIDTH + column) : zero;
            mma_16_8_16(d[n], a.x, b.x, a.y, b.y, m.x, m.y);
            mma_16_8_16(d[n], a.z, b.z, a.w, b.w, m.z, m.w);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) lora_project(
    const bf16* source, const bf16* matrix_EAI, const int* order, const Tile* tiles, const int* tile_count,
    const float* weights, float scale, bf16* p_RA, bf16* weighted_RA) {
    begin_kernel();
    __shared__ float partial[4][32][groups * 4];
    const Tile tile = tiles[blockIdx.x / 2];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = blockIdx.x % 2 * 64, count = tile.count - first - warp % 4 * 16;
    if (blockIdx.x / 2 >= *tile_count || tile.count <= first) return;
    const int row = tile.row + first + warp % 4 * 16 + lane / 4;
    const bool valid[2] = {lane / 4 < count, lane / 4 + 8 < count};
    const bf16* rows[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        // Past the end stands the tile's first row; what that gives is not stored.
        const int at = valid[i] ? row + 8 * i : tile.row;
        rows[i] = source + (u64)(GATHERS ? order[at] / TOP_K : at) * WIDTH;
    }
    float d[groups][4] = {};
    const bf16* matrix = matrix_EAI + (u64)tile.expert * RANK * WIDTH + lane / 4 * WIDTH;
    if (count > 0) {
        sum_chunks(d, rows[0], rows[1], matrix, warp / 4 * half_chunks, min(chunks, (warp / 4 + 1) * half_chunks));
    }
    if (warp >= 4) {
#pragma unroll
        for (int i = 0; i < groups * 4; ++i) partial[warp - 4][lane][i] = d[i / 4][i % 4];
    }
    __syncthreads();
    if (warp >= 4) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (!valid[i]) continue;
        const float weight = weighted_RA ? weights[order[row + 8 * i]] : 0;
#pragma unroll
        for (int n = 0; n < groups; ++n) {
            const float x = scale * (d[n][2 * i] + partial[warp][lane][4 * n + 2 * i]);
            const float y = scale * (d[n][2 * i + 1] + partial[warp][lane][4 * n + 2 * i + 1]);
            const u64 at = ((u64)(row + 8 * i) * RANK + n * 8 + lane % 4 * 2) / 2;
            ((u32*)p_RA)[at] = pack(x, y);
            if (weighted_RA) ((u32*)weighted_RA)[at] = pack(weight * x, weight * y);
        }
    }
}
