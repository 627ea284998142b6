/* loss.h -- losses of one example.
 *   cross entropy over the columns c in [start, end) of one row of logits:
 *     lse = log sum_c exp(logits[c])    loss = lse - logits[label]    dlogits[c] = dloss (exp(logits[c] - lse) - [c = label]), else 0
 *   squared error: loss = (prediction - target)^2, written in the op. */

static void FN(cross_entropy_fwd)(ptrdiff_t start, ptrdiff_t end, ptrdiff_t label,
                                  const real *restrict logits, real *restrict loss, real *restrict lse)
{
    const ptrdiff_t n = end - start;
    const real *x = logits + start;
    real top = x[0];
    for (ptrdiff_t c = 1; c < n; c++) top = x[c] > top ? x[c] : top;
    vec acc = { 0 };
    for (ptrdiff_t c = 0; c < n; c += LANES)
        acc += FN(vexp)(FN(load_part)(x + c, n - c < LANES ? n - c : LANES, -INFINITY) - top);
    *lse = top + (real)log((double)FN(vsum)(acc));
    *loss = *lse - logits[label];
}

static void FN(cross_entropy_bwd)(ptrdiff_t C, ptrdiff_t start, ptrdiff_t end, ptrdiff_t label,
                                  const real *restrict logits, real lse, real dloss, real *restrict dlogits)
{
    memset(dlogits, 0, (size_t)C * sizeof(real));
    for (ptrdiff_t c = start; c < end; c += LANES) {
        const ptrdiff_t part = end - c < LANES ? end - c : LANES;
        FN(store_part)(dlogits + c, part, FN(vexp)(FN(load_part)(logits + c, part, 0) - lse) * dloss);
    }
    dlogits[label] -= dloss;
}
