/* norm.h -- layer norm and RMS norm of N rows, and division of a row by its length.
 *   h = x + residual (or x)    mean, var over D, var biased    rstd = 1/sqrt(var + eps)    xh = (h - mean) rstd
 *   y  = xh * weight + bias
 *   dx = dresidual = rstd * (g - mean(g) - xh * mean(g * xh)),  g = dy * weight
 *   dweight = sum_n dy * xh    dbias = sum_n dy
 * x residual y [N,D]   weight bias [D]   mean rstd [N]. Saved are x, residual, mean and rstd: nothing else is written.
 * With inverse = 1/weight [D], backward takes y in place of x: xh = (y - bias) inverse. What follows keeps y anyway. */

static void FN(layer_norm_fwd)(ptrdiff_t N, ptrdiff_t D, const real *restrict x,
                               const real *restrict residual, const real *restrict weight,
                               const real *restrict bias, real eps, real *restrict y, real *restrict mean,
                               real *restrict rstd)
{
    for (ptrdiff_t n = 0; n < N; n++) {
        const real *x_n = x + n * D, *residual_n = residual ? residual + n * D : NULL;
        real *y_n = y + n * D;    /* holds h - mean until it holds y */
        ptrdiff_t d = 0;
        vec acc = { 0 }, squares = { 0 };
        real sum = 0, square = 0;
        for (; d + LANES <= D; d += LANES) {
            vec h = *(const vec *)(x_n + d);
            if (residual) h += *(const vec *)(residual_n + d);
            acc += h;
            *(vec *)(y_n + d) = h;
        }
        for (; d < D; d++) sum += y_n[d] = residual ? x_n[d] + residual_n[d] : x_n[d];
        const real mu = (sum + FN(vsum)(acc)) / (real)D;
        for (d = 0; d + LANES <= D; d += LANES) {
            const vec h = *(const vec *)(y_n + d) - mu;
            squares += h * h;
            *(vec *)(y_n + d) = h;
        }
        for (; d < D; d++) {
            y_n[d] -= mu;
            square += y_n[d] * y_n[d];
        }
        const real inv = 1 / FN(root)((square + FN(vsum)(squares)) / (real)D + eps);
        for (d = 0; d + LANES <= D; d += LANES)
            *(vec *)(y_n + d) =
                *(const vec *)(y_n + d) * inv * *(const vec *)(weight + d) + *(const vec *)(bias + d);
        for (; d < D; d++) y_n[d] = y_n[d] * inv * weight[d] + bias[d];
        mean[n] = mu;
        rstd[n] = inv;
    }
}

/* dweight and dbias are added to; NULL where not wanted. */
static void FN(layer_norm_bwd)(ptrdiff_t N, ptrdiff_t D, const real *restrict dy, const real *restrict x,
                               const real *restrict residual, const real *restrict weight,
                               const real *restrict bias, const real *restrict inverse,
                               const real *restrict mean, const real *restrict rstd, real *restrict dx,
                               real *restrict dweight, real *restrict dbias)
{
    for (ptrdiff_t n = 0; n < N; n++) {
        const real *dy_n = dy + n * D, *x_n = x + n * D, *residual_n = residual ? residual + n * D : NULL;
        real *dx_n = dx + n * D;    /* holds xh until it holds dx */
        const real mu = mean[n], inv = rstd[n];
        ptrdiff_t d = 0;
        vec acc = { 0 }, acc_xh = { 0 };
        real sum = 0, sum_xh = 0;
        for (; d + LANES <= D; d += LANES) {
            vec xh = *(const vec *)(x_n + d);
            if (inverse) xh = (xh - *(const vec *)(bias + d)) * *(const vec *)(inverse + d);
            else {
                if (residual) xh += *(const vec *)(residual_n + d);
                xh = (xh - mu) * inv;
            }
            const vec g = *(const vec *)(dy_n + d) * *(const vec *)(weight + d);
            acc += g;
            acc_xh += g * xh;
            *(vec *)(dx_n + d) = xh;
        }
        for (; d < D; d++) {
            dx_n[d] = inverse ? (x_n[d] - bias[d]) * inverse[d]
                              : ((residual ? x_n[d] + residual_n[d] : x_n[d]) - mu) * inv;
            sum += dy_n[d] * weight[d];
            sum_xh += dy_n[d] * weight[d] * dx_n[d];
        }
        if (dweight)
            for (d = 0; d < D; d++) dweight[d] += dy_n[d] * dx_n[d];
        if (dbias)
            for (d = 0; d < D; d++) dbias[d] += dy_n[d];
        const real m = (sum + FN(vsum)(acc)) / (real)D, m_xh = (sum_xh + FN(vsum)(acc_xh)) / (real)D;
        for (d = 0; d < D; d++) dx_n[d] = inv * (dy_n[d] * weight[d] - m - dx_n[d] * m_xh);
    }
}

/* rstd = 1/sqrt(mean(x^2) + eps)    y = x rstd weight    dx = rstd (g - xh mean(g xh)), xh = x rstd    dweight = sum_n dy xh */
static void FN(rms_norm_fwd)(ptrdiff_t N, ptrdiff_t D, const real *restrict x, const real *restrict weight,
                             real eps, real *restrict y, real *restrict rstd)
{
    for (ptrdiff_t n = 0; n < N; n++) {
        const real *x_n = x + n * D;
        real *y_n = y + n * D, rest = 0;
        ptrdiff_t d = 0;
        vec squares = { 0 };
        for (; d + LANES <= D; d += LANES) squares += *(const vec *)(x_n + d) * *(const vec *)(x_n + d);
        for (; d < D; d++) rest += x_n[d] * x_n[d];
        const real inv = 1 / FN(root)((rest + FN(vsum)(squares)) / (real)D + eps);
        for (d = 0; d < D; d++) y_n[d] = x_n[d] * inv * weight[d];
        rstd[n] = inv;
    }
}

/* dweight is added to; NULL where not wanted. With inverse, x is y, as above. */
static void FN(rms_norm_bwd)(ptrdiff_t N, ptrdiff_t D, const real *restrict dy, const real *restrict x,
                             const real *restrict weight, const real *restrict inverse,
                             const real *restrict rstd, real *restrict dx, real *restrict dweight)
{
    for (ptrdiff_t n = 0; n < N; n++) {
        const real *dy_n = dy + n * D, *x_n = x + n * D, inv = rstd[n];
        real *dx_n = dx + n * D, rest = 0; /* holds xh until it holds dx */
        ptrdiff_t d = 0;
        vec along = { 0 };
        for (; d + LANES <= D; d += LANES) {
            vec xh = *(const vec *)(x_n + d);
            if (inverse) xh *= *(const vec *)(inverse + d);
            else xh *= inv;
            along += *(const vec *)(dy_n + d) * *(const vec *)(weight + d) * xh;
            *(vec *)(dx_n + d) = xh;
        }
        for (; d < D; d++) {
            dx_n[d] = x_n[d] * (inverse ? inverse[d] : inv);
            rest += dy_n[d] * weight[d] * dx_n[d];
        }
        if (dweight)
            for (d = 0; d < D; d++) dweight[d] += dy_n[d] * dx_n[d];
        const real m = (rest + FN(vsum)(along)) / (real)D;
        for (d = 0; d < D; d++) dx_n[d] = inv * (dy_n[d] * weight[d] - dx_n[d] * m);
    }
}

/* y = x / max(|x|, eps) by rows; norm[b] = max(|x_b|, eps), negative where eps was larger (then y is linear in x).
 * dx = (dy - y <y, dy>) / norm, or dy / eps. */
static void FN(l2_normalize_fwd)(ptrdiff_t B, ptrdiff_t D, const real *restrict x, real eps, real *restrict y,
                                 real *restrict norm)
{
    for (ptrdiff_t b = 0; b < B; b++) {
        double square;
        FN(dot)(D, x + b * D, x + b * D, &square);
        const real length = (real)sqrt(square);
        norm[b] = length < eps ? -eps : length;
        FN(scale)(D, x + b * D, 1 / (length < eps ? eps : length), y + b * D);
    }
}

static void FN(l2_normalize_bwd)(ptrdiff_t B, ptrdiff_t D, const real *restrict dy, const real *restrict y,
                                 const real *restrict norm, real *restrict dx)
{
    for (ptrdiff_t b = 0; b < B; b++) {
        const real *dy_b = dy + b * D, *y_b = y + b * D, inv = 1 / (real)fabs(norm[b]);
        double along = 0;
        if (!(norm[b] < 0)) FN(dot)(D, dy_b, y_b, &along);
        for (ptrdiff_t d = 0; d < D; d++) dx[b * D + d] = (dy_b[d] - y_b[d] * (real)along) * inv;
    }
}
