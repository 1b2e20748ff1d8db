// Matrix products of any shape, slowly: what takes the place of the library's where its kernels cannot run
// (MARTLET_LIBRARIES=off).
//
// Math       C [m, n] = alpha A B, or C += alpha A B.
// Shapes     A [m, k] and B [k, n] of elements (-DHALF), at any strides, so also transposed; C row-major (-DPARAMETER_HALF).
// Budget     none: a thread a number of C, 2 k reads each.
// Launch     <<<m n / 256 rounded up, 256>>>.
// Numerics   one float sum over k, in order.
// Reference  the definition.
#include "elements.cuh"

extern "C" __global__ void __launch_bounds__(256) product(
    const element* a, const element* b, parameter* c, int m, int n, int k, int a_row, int a_column, int b_row, int b_column,
    float alpha, int adds) {
    begin_kernel();
    const u64 i = blockIdx.x * 256ull + threadIdx.x;
    if (i >= (u64)m * n) return;
    a += i / n * a_row;
    b += i % n * b_column;
    float sum = 0;
    for (int j = 0; j < k; ++j) sum += value(a[(u64)j * a_column]) * value(b[(u64)j * b_row]);
    put(c + i, alpha * sum + (adds ? value(c[i]) : 0.0f));
}
