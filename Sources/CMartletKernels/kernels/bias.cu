// The bias of a projection.
//
// Math       add_bias     y[t, o] += bias[o]
//            add_columns  dbias[o] += sum over t of dy[t, o]
// Shapes     y, dy [T, O]; bias in the compute dtype, dbias float [O]; any extents.
// Budget     bytes only; few families have biases, and LoRA does not train them.
// Launch     -DHALF; add_bias <<<(T, O / 256 rounded up), 256>>>, add_columns <<<O / 256 rounded up, 256>>>.
// Numerics   float, t in order: reproducible.
// Reference  CPUBackend.linear / linearBackward.
#include "elements.cuh"

extern "C" __global__ void __launch_bounds__(256) add_bias(const element* bias, element* y, int outputs) {
    begin_kernel();
    const int o = blockIdx.y * 256 + threadIdx.x;
    if (o < outputs) {
        element* at = y + (u64)blockIdx.x * outputs + o;
        put(at, value(*at) + value(bias[o]));
    }
}

extern "C" __global__ void __launch_bounds__(256) add_columns(const element* dy, float* dbias, int rows, int outputs) {
    begin_kernel();
    const int o = blockIdx.x * 256 + threadIdx.x;
    if (o >= outputs) return;
    float sum = dbias[o];
    for (int t = 0; t < rows; ++t) sum += value(dy[(u64)t * outputs + o]);
    dbias[o] = sum;
}
