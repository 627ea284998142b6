/* rope.h -- rotary positions: in every head the pairs (x_i, x_{i+d/2}) are turned by the angles of the token's position p.
 *   y_i = x_i cos[p,i] - x_{i+d/2} sin[p,i]    y_{i+d/2} = x_{i+d/2} cos[p,i] + x_i sin[p,i]
 * x y [N,H,d], d even   cosines sines [P,d/2]   positions [N]. `back` turns the other way: the gradient of x from that of y. */
static void FN(rope)(ptrdiff_t N, ptrdiff_t H, ptrdiff_t d, const int64_t *restrict positions,
                     const real *restrict cosines, const real *restrict sines, int back,
                     const real *restrict x, real *restrict y)
{
    const ptrdiff_t half = d / 2;
    const real sign = back ? -1 : 1;
    for (ptrdiff_t n = 0; n < N; n++) {
        const real *cos_n = cosines + positions[n] * half, *sin_n = sines + positions[n] * half;
        for (ptrdiff_t h = 0; h < H; h++, x += d, y += d) {
            ptrdiff_t i = 0;
            for (; i + LANES <= half; i += LANES) {
                const vec c = *(const vec *)(cos_n + i), s = *(const vec *)(sin_n + i) * sign;
                const vec a = *(const vec *)(x + i), b = *(const vec *)(x + half + i);
                *(vec *)(y + i) = a * c - b * s;
                *(vec *)(y + half + i) = b * c + a * s;
            }
            for (; i < half; i++) {
                const real c = cos_n[i], s = sin_n[i] * sign, a = x[i], b = x[half + i];
                y[i] = a * c - b * s;
                y[half + i] = b * c + a * s;
            }
        }
    }
}
