/* activation.h -- relu, gelu and silu, elementwise over n values.
 *   relu        y = max(x, 0)                                  dx = dy where y > 0, else 0
 *   erf form    y = x Phi(x) = max(x, 0) - |x| Phi(-|x|)       dx = dy (Phi(x) + x phi(x))
 *   tanh form   y = x s, s = sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)     dx = dy (s + x s (1 - s) 2 du/dx)
 *   silu        y = x s, s = sigmoid(x)                          dx = dy (s + x s (1 - s))
 * Phi, phi: distribution and density of the normal. */
#define TWICE_SQRT_2_PI ((real)1.5957691216057307)
#define CUBE ((real)0.044715)

PM_INLINE vec FN(gelu)(vec x)
{
    const vec a = FN(vmin)(FN(vabs)(x), FN(splat)(40)); /* the tail is 0 there; keeps infinity * 0 away */
    return FN(vmax)(x, (vec){ 0 }) - a * FN(normal_tail)(a, FN(vexp)(a * a * (real)-0.5));
}

PM_INLINE vec FN(gelu_slope)(vec x)
{
    const vec a = FN(vmin)(FN(vabs)(x), FN(splat)(40)), e = FN(vexp)(a * a * (real)-0.5),
              tail = FN(normal_tail)(a, e);
    return FN(select)(x < 0, tail - a * e * (real)0.39894228040143268,
                      1 - tail + a * e * (real)0.39894228040143268);
}

PM_INLINE vec FN(gelu_tanh)(vec x) { return x / (1 + FN(vexp)(x * (x * x * CUBE + 1) * -TWICE_SQRT_2_PI)); }

PM_INLINE vec FN(gelu_tanh_slope)(vec x)
{
    const vec s = 1 / (1 + FN(vexp)(x * (x * x * CUBE + 1) * -TWICE_SQRT_2_PI));
    return s + x * s * (1 - s) * (x * x * (3 * CUBE) + 1) * TWICE_SQRT_2_PI;
}

PM_INLINE vec FN(silu)(vec x) { return x / (1 + FN(vexp)(-x)); }

PM_INLINE vec FN(silu_slope)(vec x)
{
    const vec s = 1 / (1 + FN(vexp)(-x));
    return s + x * s * (1 - s);
}

/* `f` is inlined: one loop, six functions. A last part of a vector goes through the same arithmetic. */
PM_INLINE void FN(map)(ptrdiff_t n, const real *x, const real *dy, real *out, vec (*f)(vec))
{
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t part = n - i < LANES ? n - i : LANES;
        if (part == LANES) {
            vec y = f(*(const vec *)(x + i));
            if (dy) y *= *(const vec *)(dy + i);
            *(vec *)(out + i) = y;
        } else {
            vec y = f(FN(load_part)(x + i, part, 0));
            if (dy) y *= FN(load_part)(dy + i, part, 0);
            FN(store_part)(out + i, part, y);
        }
    }
}

static void FN(gelu_fwd)(ptrdiff_t n, int tanh_form, const real *restrict x, real *restrict y)
{
    if (tanh_form) FN(map)(n, x, NULL, y, FN(gelu_tanh));
    else FN(map)(n, x, NULL, y, FN(gelu));
}

static void FN(gelu_bwd)(ptrdiff_t n, int tanh_form, const real *restrict x, const real *restrict dy,
                         real *restrict dx)
{
    if (tanh_form) FN(map)(n, x, dy, dx, FN(gelu_tanh_slope));
    else FN(map)(n, x, dy, dx, FN(gelu_slope));
}

static void FN(silu_fwd)(ptrdiff_t n, const real *restrict x, real *restrict y)
{
    FN(map)(n, x, NULL, y, FN(silu));
}

static void FN(silu_bwd)(ptrdiff_t n, const real *restrict x, const real *restrict dy, real *restrict dx)
{
    FN(map)(n, x, dy, dx, FN(silu_slope));
}

/* A NaN stays. */
static void FN(relu_fwd)(ptrdiff_t n, const real *restrict x, real *restrict y)
{
    for (ptrdiff_t i = 0; i < n; i++) y[i] = x[i] < 0 ? 0 : x[i];
}

static void FN(relu_bwd)(ptrdiff_t n, const real *restrict y, const real *restrict dy, real *restrict dx)
{
    for (ptrdiff_t i = 0; i < n; i++) dx[i] = y[i] > 0 ? dy[i] : 0;
}
#undef TWICE_SQRT_2_PI
#undef CUBE
