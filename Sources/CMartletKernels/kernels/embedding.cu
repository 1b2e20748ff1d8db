// Rows of the embedding table, and their gradient.
//
// Math       x[t] = table[token[t]];  backward: dtable[v] += sum over t with token[t] = v of dx[t]
// Shapes     table `parameter` [V, H]; x, dx `element` [T, H]; dtable float [V, H]; tokens int32 [T].
// Budget     bytes 2 T H elements forward; backward T H elements + 8 H of each distinct token, and T reads of the T ids from
//            L2 (1 GB at T = 16384). Bound by bytes, unless one token is most of them: its rows are added one by one.
// Launch     -DHALF -DPARAMETER_HALF -DWIDTH=H; <<<(T, H / 2048 rounded up), 256>>>, 8 columns a thread.
// Numerics   the first row of a token adds up all of them, in the order of the rows: reproducible, no atomics. Ids outside
//            0 ..< V are the caller's fault.
// Reference  CPUBackend.embedding, embeddingBackward.
#include "elements.cuh"

constexpr bool whole = WIDTH % 8 == 0;

extern "C" __global__ void __launch_bounds__(256) embedding(const int* tokens_T, const parameter* table_VH, element* x_TH) {
    begin_kernel();
    const int column = (blockIdx.y * 256 + threadIdx.x) * 8, count = WIDTH - column;
    float x[8];
    unpack(load<whole>(table_VH + (u64)tokens_T[blockIdx.x] * WIDTH + column, count), x);
    store<whole>(x_TH + (u64)blockIdx.x * WIDTH + column, x, count);
}

/// The rows among 256 from `first` on that hold `token`, ascending, into `found`; their count, in every thread.
__device__ __forceinline__ int find(const int* tokens_T, int tokens, int token, int first, int (&found)[256]) {
    __shared__ int counts[8];
    const int row = first + threadIdx.x, warp = threadIdx.x / 32;
    const bool is_here = row < tokens && tokens_T[row] == token;
    const u32 here = __ballot_sync(0xffffffffu, is_here);
    __syncthreads();
    if (threadIdx.x % 32 == 0) counts[warp] = __popc(here);
    __syncthreads();
    int before = 0, total = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (i < warp) before += counts[i];
        total += counts[i];
    }
    if (is_here) found[before + __popc(here & ((1u << threadIdx.x % 32) - 1))] = row;
    __syncthreads();
    return total;
}

extern "C" __global__ void __launch_bounds__(256) embedding_backward(
    const int* tokens_T, const element* dx_TH, float* dtable_VH, int tokens) {
    begin_kernel();
    __shared__ int found[256];
    const int token = tokens_T[blockIdx.x];
    bool is_repeated = false;
    for (int row = threadIdx.x; row < blockIdx.x; row += 256) is_repeated |= tokens_T[row] == token;
    if (__syncthreads_or(is_repeated)) return;
    const int column = (blockIdx.y * 256 + threadIdx.x) * 8, count = WIDTH - column;
    float* target = dtable_VH + (u64)token * WIDTH + column;
    float sum[8];
    unpack(load<whole>(target, count), sum);
    for (int first = blockIdx.x; first < tokens; first += 256) {
        const int total = find(tokens_T, tokens, token, first, found);
#pragma unroll 8
        for (int i = 0; i < total; ++i) {
            float dx[8];
            unpack(load<whole>(dx_TH + (u64)found[i] * WIDTH + column, count), dx);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[j] += dx[j];
        }
    }
    store<whole>(target, sum, count);
}
