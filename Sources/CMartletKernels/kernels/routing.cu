// The order in which the expert kernels walk the routed rows, made on the device.
//
// Math       order_R: flat indices t K + k grouped by expert, ascending inside a group; position_R its inverse; offset_E1 the
//            groups' starts; tiles: blocks of at most 128 consecutive rows of one expert, by expert and row; parts: the same
//            for grouped_gemm_dx_sm90.cu, an expert's rows in the fewest blocks of at most 192, which differ by 16 or so.
// Shapes     expert_TK int32 [R]; order, position int32 [R]; offset int32 [E + 1]; tiles [R / 128 + E]; parts [R / 192 + E];
//            part_count int32 [1]; tile_count int32 [2], of which the second is how many tiles are taken: none yet.
// Budget     each expert's block reads the R ids twice, from L2: 8 R E bytes; nothing else counts.
// Launch     -DEXPERTS (at most 1024). `routing_order` <<<E, 1024>>>, then `routing_tiles` and `routing_parts` <<<1, 1024>>>. No
//            grid depends on the routing, and the host never reads a count.
// Numerics   integers in a fixed order: the same bytes each run, no atomics. Ids outside 0 ..< E are the caller's fault.
// Reference  CPUBackend.route.
#include "common.cuh"

/// Sum over the block of 1024 threads, in every thread.
__device__ __forceinline__ int block_sum(int x, int* shared) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(shared[threadIdx.x % 32]);
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
    const int before = warp_sum(lane < warp ? warps : 0);
    total = warp_sum(warps);
    return before + sum - x;
}

/// This thread's 8 consecutive ids of the round that starts at `base`; behind the last one, no expert's.
__device__ __forceinline__ void load_ids(const int* expert_TK, int base, int rows, int (&ids)[8]) {
    const int first = base + threadIdx.x * 8;
    if (first + 8 <= rows && (u64)expert_TK % 16 == 0) {
        const Vector a = load128(expert_TK + first), b = load128(expert_TK + first + 4);
        const u32 words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int j = 0; j < 8; ++j) ids[j] = (int)words[j];
    } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) ids[j] = first + j < rows ? expert_TK[first + j] : EXPERTS;
    }
}

extern "C" __global__ void __launch_bounds__(1024) routing_order(
    const int* expert_TK, int* order_R, int* position_R, int* offset_E1, int rows) {
    begin_kernel();
    __shared__ int shared[32];
    const int expert = blockIdx.x;
    constexpr int round = 8 * 1024;
    int smaller = 0, ids[8];
#pragma unroll 4
    for (int base = 0; base < rows; base += round) {
        load_ids(expert_TK, base, rows, ids);
#pragma unroll
        for (int j = 0; j < 8; ++j) smaller += ids[j] < expert;
    }
    int start = block_sum(smaller, shared);
    if (threadIdx.x == 0) offset_E1[expert] = start;
    if (threadIdx.x == 0 && expert == 0) offset_E1[EXPERTS] = rows;
    for (int base = 0; base < rows; base += round) {
        load_ids(expert_TK, base, rows, ids);
        u32 mine = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) mine |= (u32)(ids[j] == expert) << j;
        int total;
        int place = start + block_scan(__popc(mine), shared, total);
        for (; mine; mine &= mine - 1, ++place) {
            const int flat = base + threadIdx.x * 8 + __ffs(mine) - 1;
            order_R[place] = flat;
            position_R[flat] = place;
        }
        start += total;
    }
}

/// Of the thread's expert; none behind the last.
struct Rows {
    int expert = threadIdx.x, start = 0, count = 0;

    __device__ __forceinline__ explicit Rows(const int* offset_E1) {
        if (expert >= EXPERTS) return;
        start = offset_E1[expert];
        count = offset_E1[expert + 1] - start;
    }
};

extern "C" __global__ void __launch_bounds__(1024) routing_tiles(const int* offset_E1, Tile* tiles, int* tile_count) {
    begin_kernel();
    __shared__ int shared[32];
    const Rows own(offset_E1);
    int total;
    int index = block_scan(ceil_div(own.count, tile_rows), shared, total);
    for (int row = 0; row < own.count; row += tile_rows) {
        tiles[index++] = Tile{own.expert, own.start + row, min(tile_rows, own.count - row), 0};
    }
    if (threadIdx.x == 0) tile_count[0] = total, tile_count[1] = 0;
}

/// Rows are dealt out by `part_unit`; the first parts have one unit more if they do not come out even.
extern "C" __global__ void __launch_bounds__(1024) routing_parts(const int* offset_E1, Tile* parts, int* part_count) {
    begin_kernel();
    __shared__ int shared[32];
    const Rows own(offset_E1);
    const int mine = ceil_div(own.count, part_rows), units = ceil_div(own.count, part_unit);
    int total;
    parts += block_scan(mine, shared, total);
    for (int i = 0, row = 0; i < mine; ++i) {
        const int rows = min(part_unit * (units / mine + (i < units % mine)), own.count - row);
        parts[i] = Tile{own.expert, own.start + row, rows, 0};
        row += rows;
    }
    if (threadIdx.x == 0) *part_count = total;
}

/// The inverse of an order that is there already: position[order[i]] = i. <<<R / 256 rounded up, 256>>>
extern "C" __global__ void __launch_bounds__(256) routing_position(const int* order, int* position, int rows) {
    begin_kernel();
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < rows) position[order[i]] = i;
}
