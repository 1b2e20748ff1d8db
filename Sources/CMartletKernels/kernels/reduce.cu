// The second stage of sums over rows: adds partial rows to a parameter's gradient.
//
// Math       y[c] += sum over r of x[r, c]
// Shapes     x float [rows, width]; y float [width].
// Budget     bytes 4 rows width; small (rows at most some thousands). A block of 32 x 32 threads takes 32 columns.
// Launch     <<<width / 32 rounded up, 1024>>>.
// Numerics   thread row s sums rows s, s + 32, ... in order, then the 32 sums in order: reproducible, no atomics.
// Reference  CPUBackend.addRows.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(1024) add_rows(const float* x_RC, float* y_C, int rows, int width) {
    begin_kernel();
    __shared__ float sums[32][32];
    const int column = blockIdx.x * 32 + threadIdx.x % 32, strand = threadIdx.x / 32;
    float sum = 0;
    if (column < width) {
#pragma unroll 8
        for (int row = strand; row < rows; row += 32) sum += x_RC[(u64)row * width + column];
    }
    sums[strand][threadIdx.x % 32] = sum;
    __syncthreads();
    if (strand > 0 || column >= width) return;
    for (int i = 1; i < 32; ++i) sum += sums[i][threadIdx.x];
    y_C[column] += sum;
}
