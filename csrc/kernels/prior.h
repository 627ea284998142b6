/* prior.h -- minus the log probability of who uses what under the Indian buffet process, column c of a table of logits alone.
 *   task t uses c where logits[t,c] > 0      m = how many tasks do      K = how many columns up to c are used by the same tasks
 *   term = log K - log (T - m)! - log (m - 1)!                     0 for a column that nobody uses
 *   dz[t,c] = dloss p (1 - p) (H(T - m) - H(m - 1))                p = sigmoid(z), H(n) = 1 + 1/2 + .. + 1/n; 0 as well
 * log K, summed over equal columns, is the log of their number's factorial. The threshold passes the gradient straight through;
 * dterm/dm = digamma(T - m + 1) - digamma(m), which is a difference of harmonic numbers. logits dlogits [T,C]. */
static ptrdiff_t FN(ibp_users)(ptrdiff_t T, ptrdiff_t C, ptrdiff_t c, const real *logits)
{
    ptrdiff_t m = 0;
    for (ptrdiff_t t = 0; t < T; t++) m += logits[t * C + c] > 0;
    return m;
}

static void FN(ibp_fwd)(ptrdiff_t T, ptrdiff_t C, ptrdiff_t c, const real *restrict logits,
                        double *restrict term)
{
    const ptrdiff_t m = FN(ibp_users)(T, C, c, logits);
    ptrdiff_t same = 1;
    *term = 0;
    if (m == 0) return;
    for (ptrdiff_t other = 0; other < c; other++) {
        ptrdiff_t t = 0;
        while (t < T && (logits[t * C + other] > 0) == (logits[t * C + c] > 0)) t++;
        same += t == T;
    }
    *term = log((double)same);
    for (ptrdiff_t i = 2; i <= T - m; i++) *term -= log((double)i);
    for (ptrdiff_t i = 2; i <= m - 1; i++) *term -= log((double)i);
}

static void FN(ibp_bwd)(ptrdiff_t T, ptrdiff_t C, ptrdiff_t c, const real *restrict logits, double dloss,
                        real *restrict dlogits)
{
    const ptrdiff_t m = FN(ibp_users)(T, C, c, logits);
    double slope = 0;
    for (ptrdiff_t i = 1; i <= T - m && m; i++) slope += 1 / (double)i;
    for (ptrdiff_t i = 1; i <= m - 1; i++) slope -= 1 / (double)i;
    for (ptrdiff_t t = 0; t < T; t++) {
        const double p = 1 / (1 + exp(-(double)logits[t * C + c]));
        dlogits[t * C + c] = (real)(dloss * p * (1 - p) * slope);
    }
}
