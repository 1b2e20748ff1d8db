// The order in which the expert kernels walk the routed rows, made on the device.
//
// Math       order_R: flat indices t K + k grouped by expert, ascending inside a group; position_R its inverse; offset_E1 the
//            groups' starts; tiles: blocks of at most 128 consecutive rows of one expert, by expert and row.
// Shapes     expert_TK int32 [R]; order, position int32 [R]; offset int32 [E + 1]; tiles [R / 128 + E]; tile_count int32 [1].
// Budget     each expert's block reads the R ids twice, from L2: 8 R E bytes; nothing else counts.
// Launch     -DEXPERTS (at most 1024). `routing_order` <<<E, 1024>>>, then `routing_tiles` <<<1, 1024>>>. No grid depends on the
//            routing, and the host never reads a count.
// Numerics   integers in a fixed order: the same bytes each run, no atomics. Ids outside 0 ..< E are the caller's fault.
// Reference  CPUBackend.route.
#include "common.cuh"

/// An expert of at most so many tiles is bound by the bytes of its weights; larger ones by the products.
#ifndef LIGHT
#define LIGHT 1
#endif
constexpr int light_tiles = LIGHT;

/// Sum over the block of 1024 threads, in every thread.
__device__ __forceinline__ int block_sum(int x, int* shared) {
    x = __reduce_add_sync(0xffffffffu, x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    return __reduce_add_sync(0xffffffffu, shared[threadIdx.x % 32]);
}

/// Sum over the threads before this one; `total` over all.
__device__ __forceinline__ int block_scan(int x, int* shared, int& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = x;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += other;
    }
    __syncthreads();
    if (lane == 31) shared[warp] = sum;
    __syncthreads();
    const int warps = shared[lane];
    const int before = __reduce_add_sync(0xffffffffu, lane < warp ? warps : 0);
    total = __reduce_add_sync(0xffffffffu, warps);
    return before + sum - x;
}

extern "C" __global__ void __launch_bounds__(1024) routing_order(
    const int* expert_TK, int* order_R, int* position_R, int* offset_E1, int rows) {
    __shared__ int shared[32];
    const int expert = blockIdx.x;
    int smaller = 0;
    for (int i = threadIdx.x; i < rows; i += 1024) smaller += expert_TK[i] < expert;
    int start = block_sum(smaller, shared);
    if (threadIdx.x == 0) offset_E1[expert] = start;
    if (threadIdx.x == 0 && expert == 0) offset_E1[EXPERTS] = rows;
    // Each thread takes 8 consecutive ids, so that a round covers 8192.
    for (int base = 0; base < rows; base += 8192) {
        const int first = base + threadIdx.x * 8;
        u32 mine = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) mine |= (u32)(first + j < rows && expert_TK[first + j] == expert) << j;
        int total;
        int place = start + block_scan(__popc(mine), shared, total);
        for (; mine; mine &= mine - 1, ++place) {
            const int flat = first + __ffs(mine) - 1;
            order_R[place] = flat;
            position_R[flat] = place;
        }
        start += total;
    }
}

/// How many of `others` tiles stand before tile `i` of `mine` when both are spread evenly: those j whose (2 j + 1) / others is
/// smaller than (2 i + 1) / mine, or the same if `second`.
__device__ __forceinline__ int before(int i, int mine, int others, bool second) {
    const long long n = (2ll * i + 1) * others - mine;
    if (n < 0) return 0;
    return second ? n / (2 * mine) + 1 : (n + 2 * mine - 1) / (2 * mine);
}

extern "C" __global__ void __launch_bounds__(1024) routing_tiles(const int* offset_E1, Tile* tiles, int* tile_count) {
    __shared__ int shared[32];
    const int expert = threadIdx.x;
    const int start = expert < EXPERTS ? offset_E1[expert] : 0;
    const int count = expert < EXPERTS ? offset_E1[expert + 1] - start : 0;
    const int own = ceil_div(count, tile_rows);
    const bool light = own <= light_tiles;
    int lights, heavies;
    const int light_before = block_scan(light ? own : 0, shared, lights);
    const int heavy_before = block_scan(light ? 0 : own, shared, heavies);
    for (int i = 0; i < own; ++i) {
        const int at = (light ? light_before : heavy_before) + i, row = i * tile_rows;
        const int index = at + (light ? before(at, lights, heavies, true) : before(at, heavies, lights, false));
        tiles[index] = Tile{expert, start + row, min(tile_rows, count - row), 0};
    }
    if (threadIdx.x == 0) *tile_count = lights + heavies;
}

/// The inverse of an order that is there already: position[order[i]] = i. <<<R / 256 rounded up, 256>>>
extern "C" __global__ void __launch_bounds__(256) routing_position(const int* order, int* position, int rows) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < rows) position[order[i]] = i;
}
