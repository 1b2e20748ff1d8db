// Exponentials and what is made of them.

#define exponential NAME(exponential)
#define total NAME(total)
#define loadFirst NAME(loadFirst)
#define storeFirst NAME(storeFirst)

/// The `count` values at p, `fill` behind them; all of them for a count of LANES or more.
INLINE Lanes loadFirst(const float *p, int count, float fill) {
    if (count >= LANES) return load(p);
    float buffer[LANES];
    for (int i = 0; i < LANES; i++) buffer[i] = i < count ? p[i] : fill;
    return load(buffer);
}

INLINE void storeFirst(float *p, Lanes x, int count) {
    if (count >= LANES) {
        store(p, x);
        return;
    }
    float buffer[LANES];
    store(buffer, x);
    for (int i = 0; i < count; i++) p[i] = buffer[i];
}

/// e^x to about 1 ulp for x in [-87.3, 88.3]; 0 below, e^88.3 above, NaN for NaN: x = n ln 2 + r with
/// |r| <= ln 2 / 2, e^r by a minimax polynomial (Cephes expf), 2^n put together from bits.
INLINE Lanes exponential(Lanes x) {
    Bits isLarge = (Bits)(x > 88.3f), isSmall = (Bits)(x < -87.3f);
    Lanes bounded = (Lanes)((isLarge & (Bits)spread(88.3f)) | (~isLarge & (Bits)x));
    // 1.5 * 2^23: adding it rounds to an integer, found in the low bits.
    Lanes shifted = __builtin_elementwise_fma(bounded, spread(1.44269504f), spread(12582912.0f));
    Lanes n = shifted - 12582912.0f;
    Lanes r = __builtin_elementwise_fma(n, spread(-0.693359375f), bounded);
    r = __builtin_elementwise_fma(n, spread(2.12194440e-4f), r);
    Lanes y = __builtin_elementwise_fma(r, spread(1.98756915e-4f), spread(1.39819995e-3f));
    y = __builtin_elementwise_fma(y, r, spread(8.333451907e-3f));
    y = __builtin_elementwise_fma(y, r, spread(4.166579589e-2f));
    y = __builtin_elementwise_fma(y, r, spread(1.666666546e-1f));
    y = __builtin_elementwise_fma(y, r, spread(0.5f));
    y = __builtin_elementwise_fma(y * r, r, r) + 1;
    Bits power = ((Bits)shifted << 23) + 0x3F800000u;
    return (Lanes)((Bits)(y * (Lanes)power) & ~isSmall);
}

/// The sum of the lanes, halves first.
INLINE float total(Lanes x) {
    float part[LANES];
    store(part, x);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

TARGET static float NAME(maximum)(int count, const float *x) {
    Lanes most = spread(-__builtin_inff());
    for (int i = 0; i < count; i += LANES) {
        Lanes value = loadFirst(x + i, count - i, -__builtin_inff());
        Bits isMore = (Bits)(value > most);
        most = (Lanes)((isMore & (Bits)value) | (~isMore & (Bits)most));
    }
    float part[LANES], result = -__builtin_inff();
    store(part, most);
    for (int i = 0; i < LANES; i++) result = part[i] > result ? part[i] : result;
    return result;
}

TARGET static float NAME(exponentiate)(int count, float *x, float shift) {
    Lanes sum = {};
    for (int i = 0; i < count; i += LANES) {
        Lanes y = exponential(loadFirst(x + i, count - i, -__builtin_inff()) - shift);
        storeFirst(x + i, y, count - i);
        sum += y;
    }
    return total(sum);
}

TARGET static void NAME(scoreGradients)(int count, float *score, float *dscore, float logSumExp, float delta) {
    for (int i = 0; i < count; i += LANES) {
        Lanes p = exponential(loadFirst(score + i, count - i, 0) - logSumExp);
        Lanes d = p * (loadFirst(dscore + i, count - i, 0) - delta);
        storeFirst(score + i, p, count - i);
        storeFirst(dscore + i, d, count - i);
    }
}

TARGET static void NAME(gatedUnit)(int count, const float *gate, const float *up, float *y) {
    for (int i = 0; i < count; i += LANES) {
        Lanes g = loadFirst(gate + i, count - i, 0), u = loadFirst(up + i, count - i, 0);
        storeFirst(y + i, g * u / (1 + exponential(-g)), count - i);
    }
}

TARGET static void NAME(gatedUnitBackward)(
    int count, const float *gate, const float *up, const float *dy, float *dgate, float *dup) {
    for (int i = 0; i < count; i += LANES) {
        Lanes g = loadFirst(gate + i, count - i, 0), u = loadFirst(up + i, count - i, 0);
        Lanes d = loadFirst(dy + i, count - i, 0), s = 1 / (1 + exponential(-g));
        storeFirst(dgate + i, d * u * (s * (1 + g * (1 - s))), count - i);
        storeFirst(dup + i, d * (g * s), count - i);
    }
}
#undef exponential
#undef total
#undef loadFirst
#undef storeFirst
