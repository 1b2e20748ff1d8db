// Hopper's own instructions (sm_90a) as inline PTX: mbarrier, the tensor copy engine (TMA), wgmma, register budgets.
// Source: NVIDIA's PTX ISA manual, sections "mbarrier", "cp.async.bulk.tensor", "wgmma".
#pragma once
#include "common.cuh"

/// A tensor map as cuTensorMapEncodeTiled makes it; passed by value as a __grid_constant__ parameter.
struct alignas(64) TensorMap {
    u64 words[16];
};
static_assert(sizeof(TensorMap) == 128, "TensorMap");

// MARK: Threads

/// The lane, made anew wherever it is asked for: addresses made from it are not kept in registers (or spilled, which is ruin:
/// little of the L1 cache is left) through the products.
__device__ __forceinline__ int lane_id() {
    int lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

/// The same for the thread in its block.
__device__ __forceinline__ int thread_id() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// MARK: Barriers

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// -DRACECHECK=1: for compute-sanitizer's racecheck, which takes who arrives for others behind `__syncwarp` or `bar.sync` for itself
/// alone, and does not follow what `cp.async` arrives for. There every thread arrives for itself.
#ifndef RACECHECK
#define RACECHECK 0
#endif
/// Arrivals of a warp that signals.
constexpr int signals = RACECHECK ? 32 : 1;
/// A warp has written or read.
__device__ __forceinline__ void signal(u32 barrier) {
    __syncwarp();
    if (RACECHECK || lane_id() == 0) barrier_arrive(barrier);
}
/// One thread of the warpgroup arrives.
__device__ __forceinline__ void release(u32 barrier) {
    if (threadIdx.x % 128 == 0) barrier_arrive(barrier);
}
/// Arrives, and announces `bytes` that the copy engine will write.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred done;\nwait:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra.uni end;\nbra.uni wait;\nend:\n}"
                 ::"r"(barrier), "r"(parity) : "memory");
}
/// Arrives once this thread's copies (copy_async) so far are done; one of the barrier's expected arrivals. Who waits must
/// fence_async_proxy before the tensor cores read.
__device__ __forceinline__ void copy_async_arrive(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
/// Ordinary writes to shared memory become visible to the tensor cores and the copy engine.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// MARK: Tensor copies

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
/// A box of a two-dimensional tensor, its first element at (x, y); out of bounds reads as zero.
__device__ __forceinline__ void tensor_load(u32 to, const TensorMap& map, u32 barrier, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(to), "l"(&map), "r"(barrier), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void tensor_load(u32 to, const TensorMap& map, u32 barrier, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];"
                 ::"r"(to), "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z) : "memory");
}

// MARK: Clusters of blocks; one of one block is none

template <int blocks> __device__ __forceinline__ int cluster_rank() { return blocks == 1 ? 0 : blockIdx.x % blocks; }

/// All threads of the cluster that have not left. Says nothing of the order of ordinary writes in the others' memory.
template <int blocks> __device__ __forceinline__ void cluster_barrier() {
    if (blocks == 1) return __syncthreads();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

/// `release` in every block: the first threads of the warpgroup arrive, each in one. (With `.release.cluster` the compiler puts a
/// MEMBAR.ALL.GPU before it, most of a microsecond; reads by the tensor cores that are waited for need none.)
template <int blocks> __device__ __forceinline__ void release_all(u32 barrier) {
    if (blocks == 1) return release(barrier);
    const int block = threadIdx.x % 128;
    if (block >= blocks) return;
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(block) : "memory");
}

/// A box to the same place of every block, and its bytes to the same barrier of each.
template <int blocks> __device__ __forceinline__ void tensor_load_all(u32 to, const TensorMap& map, u32 barrier, int x, int y) {
    if (blocks == 1) return tensor_load(to, map, barrier, x, y);
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;"
                 ::"r"(to), "l"(&map), "r"(barrier), "r"(x), "r"(y), "h"((u16)((1 << blocks) - 1)) : "memory");
}

__device__ __forceinline__ void tensor_load_both(u32 to, const TensorMap& map, u32 barrier, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6;"
                 ::"r"(to), "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"((u16)3) : "memory");
}

/// The place `address` in block `block` of the cluster.
__device__ __forceinline__ u32 place_in(u32 address, int block) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
    return there;
}
/// A word to another block's shared memory, in the background; its bytes count for a barrier of that block.
__device__ __forceinline__ void send(u32 to, u32 barrier, u32 x) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];"
                 ::"r"(to), "r"(x), "r"(barrier) : "memory");
}
/// The same of `bytes` of this block's shared memory, by the copy engine.
__device__ __forceinline__ void send_bytes(u32 to, u32 barrier, u32 from, u32 bytes) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "r"(from), "r"(bytes), "r"(barrier) : "memory");
}
/// One thread's arrival at the same barrier of both blocks of the cluster.
__device__ __forceinline__ void barrier_arrive_both(u32 barrier) {
#pragma unroll
    for (int block = 0; block < 2; ++block) {
        asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(place_in(barrier, block)) : "memory");
    }
}

// MARK: Stored matrices

/// The reverse of an ldmatrix, not transposed.
__device__ __forceinline__ void store_matrices(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(address), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}

/// The reverse of a transposing ldmatrix: lane l gives the address of column l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices_transposed(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(address), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}

// MARK: Rings

/// Where a thread stands in a ring of `stages` slots in shared memory that one warpgroup fills and two multiply from, in turns: the
/// slot, and the parity of its next full phase. Behind the slots, at `barriers_at`, each has two barriers; then come the turns.
template <int stages, int stage_bytes, int barriers_at> struct RingPlace {
    u32 base;
    int slot = 0;
    u32 parity = 0;

    __device__ __forceinline__ explicit RingPlace(u32 base) : base(base) {}
    __device__ __forceinline__ u32 stage() const { return base + slot * stage_bytes; }
    __device__ __forceinline__ u32 full() const { return base + barriers_at + 16 * slot; }
    __device__ __forceinline__ u32 empty() const { return full() + 8; }
    /// Completed when warpgroup `group` may multiply: a parity tells only neighbouring phases of a slot apart, so that it must
    /// not wait for a slot before the other one has seen all of its own.
    __device__ __forceinline__ u32 turn(int group) const { return base + barriers_at + 16 * stages + 8 * group; }
    __device__ __forceinline__ void advance(int count) {
        slot += count;
        parity ^= slot / stages & 1;
        slot %= stages;
    }
    __device__ __forceinline__ void next() {
        if (++slot == stages) slot = 0, parity ^= 1;
    }
};

// MARK: Register budgets

/// `x`, which all lanes of the warp have, and the compiler knows it: what is made of it stands in uniform registers, where wgmma wants
/// its descriptors. (Else each takes four instructions to get there, a tenth of all in some kernels.)
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }
/// Of the warpgroups that multiply, behind the one that copies.
__device__ __forceinline__ int consumer_group() { return uniform((int)threadIdx.x / 128 - 1); }

template <int N> __device__ __forceinline__ void register_increase() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void register_decrease() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// MARK: wgmma

/// Describes an operand in shared memory whose rows are 128 bytes in the 128-byte swizzle: byte b of row i stands at
/// 128 i + (b ^ 16 (i % 8)). `leading` is the distance in bytes of 64-column groups of an operand whose inner dimension is
/// N (or M); for one whose inner dimension is K it does not matter.
__device__ __forceinline__ u64 operand(u32 address, u32 leading = 16) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
/// The same for rows of 32 bytes in the 32-byte swizzle, of which 16 columns (N) stand inside: byte b of row i stands at
/// 32 i + (b ^ 16 (i / 4 % 2)).
__device__ __forceinline__ u64 operand_16(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(256 >> 4) << 32 | (u64)3 << 62;
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/// Keeps the compiler from reading the first `held` accumulators before a wait.
template <int held, int count> __device__ __forceinline__ void hold(float (&d)[count]) {
#pragma unroll
    for (int i = 0; i < held; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
