/* activation.h -- relu, gelu and silu, elementwise over n values, or over the rows that a product reads.
 *   relu        y = max(x, 0)                                  dx = dy where y > 0, else 0
 *   erf form    y = x Phi(x) = max(x, 0) - |x| Phi(-|x|)       dx = dy (Phi(x) + x phi(x))
 *   tanh form   y = x s, s = sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)     dx = dy (s + x s (1 - s) 2 du/dx)
 *   silu        y = x s, s = sigmoid(x)                          dx = dy (s + x s (1 - s))
 * Phi, phi: distribution and density of the normal. x s is x / (1 + exp(-..)): 1 / (1 + ..) times x would round once more. */
#define TWICE_SQRT_2_PI ((real)1.5957691216057307)
#define CUBE ((real)0.044715)

struct FN(point) {
    vec y, slope;
};

PM_INLINE struct FN(point) FN(relu)(vec x)
{
    const vec zero = { 0 };
    return (struct FN(point)){ FN(vmax)(x, zero), FN(select)(x > zero, FN(splat)(1), zero) };
}

PM_INLINE struct FN(point) FN(gelu)(vec x)
{
    const vec a = FN(vmin)(FN(vabs)(x), FN(splat)(40)); /* the tail is 0 there; keeps infinity * 0 away */
    const vec e = FN(vexp_below)(a * a * (real)-0.5), tail = FN(normal_tail)(a, e);
    const vec rise = a * e * (real)0.39894228040143268;
    return (struct FN(point)){ FN(vmax)(x, (vec){ 0 }) - a * tail,
                               FN(select)(x < 0, tail - rise, 1 - tail + rise) };
}

PM_INLINE struct FN(point) FN(gelu_tanh)(vec x)
{
    const vec e = 1 + FN(vexp)(x * (x * x * CUBE + 1) * -TWICE_SQRT_2_PI), s = 1 / e, y = x / e;
    return (struct FN(point)){ y, s + y * (1 - s) * (x * x * (3 * CUBE) + 1) * TWICE_SQRT_2_PI };
}

PM_INLINE struct FN(point) FN(silu)(vec x)
{
    const vec e = 1 + FN(vexp)(-x), s = 1 / e, y = x / e;
    return (struct FN(point)){ y, s + y * (1 - s) };
}

/* y = f(x) times, dx = dy times f'(x), dtimes = dy f(x); times NULL is 1, and of y, dx and dtimes any may be NULL. x may be y, dy may
 * be dx. `f` is inlined; the last part of a vector goes through the same arithmetic. */
PM_INLINE void FN(map)(ptrdiff_t n, const real *x, const real *times, const real *dy, real *y, real *dx,
                       real *dtimes, struct FN(point) (*f)(vec))
{
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const struct FN(point) at = f(*(const vec *)(x + i));
        const vec t = times ? *(const vec *)(times + i) : FN(splat)(1);
        const vec d = dy ? *(const vec *)(dy + i) : (vec){ 0 };
        if (y) *(vec *)(y + i) = at.y * t;
        if (dx) *(vec *)(dx + i) = d * t * at.slope;
        if (dtimes) *(vec *)(dtimes + i) = d * at.y;
    }
    if (i == n) return;
    const struct FN(point) at = f(FN(load_part)(x + i, n - i, 0));
    const vec t = times ? FN(load_part)(times + i, n - i, 0) : FN(splat)(1);
    const vec d = dy ? FN(load_part)(dy + i, n - i, 0) : (vec){ 0 };
    if (y) FN(store_part)(y + i, n - i, at.y * t);
    if (dx) FN(store_part)(dx + i, n - i, d * t * at.slope);
    if (dtimes) FN(store_part)(dtimes + i, n - i, d * at.y);
}

static void FN(gelu_fwd)(ptrdiff_t n, int tanh_form, const real *restrict x, real *restrict y)
{
    if (tanh_form) FN(map)(n, x, NULL, NULL, y, NULL, NULL, FN(gelu_tanh));
    else FN(map)(n, x, NULL, NULL, y, NULL, NULL, FN(gelu));
}

static void FN(gelu_bwd)(ptrdiff_t n, int tanh_form, const real *restrict x, const real *restrict dy,
                         real *restrict dx)
{
    if (tanh_form) FN(map)(n, x, NULL, dy, NULL, dx, NULL, FN(gelu_tanh));
    else FN(map)(n, x, NULL, dy, NULL, dx, NULL, FN(gelu));
}

static void FN(silu_fwd)(ptrdiff_t n, const real *restrict x, real *restrict y)
{
    FN(map)(n, x, NULL, NULL, y, NULL, NULL, FN(silu));
}

static void FN(silu_bwd)(ptrdiff_t n, const real *restrict x, const real *restrict dy, real *restrict dx)
{
    FN(map)(n, x, NULL, dy, NULL, dx, NULL, FN(silu));
}

/* Rows as a product reads them: xs [N,D] staged becomes activation(xs) times. With dx [N,D], the gradient of what it becomes, that
 * turns into the one of x. times, dx, dtimes may be NULL; row strides ld */
PM_INLINE void FN(map_rows)(ptrdiff_t N, ptrdiff_t D, const real *times, ptrdiff_t ld, real *xs, real *dx,
                            real *dtimes, struct FN(point) (*f)(vec))
{
    for (ptrdiff_t n = 0, at = 0; n < N; n++, at += ld, xs += PM_STRIDE)
        if (!dx) FN(map)(D, xs, times ? times + at : NULL, NULL, xs, NULL, NULL, f);
        else FN(map)(D, xs, times ? times + at : NULL, dx + at, xs, dx + at, dtimes ? dtimes + at : NULL, f);
}

static void FN(activate)(int activation, ptrdiff_t N, ptrdiff_t D, const real *times, ptrdiff_t ld, real *xs,
                         real *dx, real *dtimes)
{
    switch (activation) {
    case PM_RELU:
        FN(map_rows)(N, D, times, ld, xs, dx, dtimes, FN(relu));
        break;
    case PM_GELU:
        FN(map_rows)(N, D, times, ld, xs, dx, dtimes, FN(gelu));
        break;
    case PM_GELU_TANH:
        FN(map_rows)(N, D, times, ld, xs, dx, dtimes, FN(gelu_tanh));
        break;
    case PM_SILU:
        FN(map_rows)(N, D, times, ld, xs, dx, dtimes, FN(silu));
        break;
    }
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
