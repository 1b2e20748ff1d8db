// A turn that blocks hand on through global memory: so that they add to the same sums in a fixed order.
#pragma once
#include "common.cuh"

/// A number that counts up. What was written before a turn was handed on is seen by who has waited for it (PTX ISA, "Memory
/// Consistency Model": release and acquire at gpu scope).
struct Turn {
    int* place;
    int seen;

    /// Asks for the number; the answer is needed only in `wait`.
    __device__ __forceinline__ void ask(int* at) {
        place = at;
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(place) : "memory");
    }
    __device__ __forceinline__ void wait(int number) {
        while (seen < number) ask(place);
    }
    __device__ __forceinline__ void hand_on(int number) const {
        asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(place), "r"(number) : "memory");
    }
};
