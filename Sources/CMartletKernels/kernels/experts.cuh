// What the grouped GEMMs of every architecture share: their modes, and SwiGLU on pairs of bfloat16.
#pragma once
#include "common.cuh"

#define UP 0
#define DOWN 1
#define DACT 2
#define DX 3

/// silu(gate) * up of two neighbouring columns.
__device__ __forceinline__ u32 swiglu(u32 gates, u32 ups) {
    return pack(low(gates) * sigmoid(low(gates)) * low(ups), high(gates) * sigmoid(high(gates)) * high(ups));
}

/// dSwiGLU of two neighbouring columns: gate and up become their gradients, dact becomes act. Returns <act, dact>.
__device__ __forceinline__ float swiglu_backward(u32& gates, u32& ups, u32& dact, float weight) {
    float act[2], dgate[2], dup[2], sum = 0;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
        const float gate = e ? high(gates) : low(gates), up = e ? high(ups) : low(ups);
        const float gradient = e ? high(dact) : low(dact), s = sigmoid(gate), silu = gate * s;
        act[e] = silu * up;
        sum += act[e] * gradient;
        dgate[e] = weight * gradient * up * (s + silu * (1 - s));
        dup[e] = weight * gradient * silu;
    }
    gates = pack(dgate[0], dgate[1]);
    ups = pack(dup[0], dup[1]);
    dact = pack(act[0], act[1]);
    return sum;
}
