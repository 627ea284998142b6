/* route.h -- the task router's weights of one group: a gate a for each head and skill, normalised over the skills.
 *   z' = (z + log u - log(1 - u)) / temperature with noise u (Gumbel-sigmoid), z' = z without
 *   gate               a = mask *                    slope = da/dz = mask *          w
 *   sigmoid            s = sigmoid(z')               s (1 - s) / temperature         a / n, n = sum_i a[i] + 1e-12
 *   straight through   [s > 1/2]                     s (1 - s) / temperature         a / n
 *   softmax            e = exp((z - top) / temp.)    e / temperature                 a / n
 *   l2                 z                             1                               a / n, n = max(|a|, 1e-12)
 *   with `average`, w = a / n, n = sqrt(S / Q), whatever the other gates
 *   dz = slope / n (dw - sum_i dw[i] w[i]); in l2 dw - w sum_i dw[i] w[i]; with `average` dw alone
 * Without noise the temperature of the sigmoids is 1. Where all a are 0 the gradient takes n = 1 (without `average`): no skill was
 * chosen, and divided by 1e-12 the step would be the last. logits noise mask weights gates (a) slopes (slope / n) [Q,S].
 * Few values: plain libm in float64. */

static void FN(task_router_fwd)(ptrdiff_t Q, ptrdiff_t S, const real *restrict logits,
                                const real *restrict noise, const real *restrict mask, double temperature,
                                int gate, int average, real *restrict weights, real *restrict gates,
                                real *restrict slopes)
{
    if (gate != PM_SOFTMAX && !noise) temperature = 1;
    for (ptrdiff_t q = 0; q < Q; q++) {
        double top = -INFINITY, sum = 0;
        for (ptrdiff_t i = q * S; i < (q + 1) * S; i++)
            top = (double)logits[i] > top ? (double)logits[i] : top;
        for (ptrdiff_t i = q * S; i < (q + 1) * S; i++) {
            const double keep = mask ? (double)mask[i] : 1;
            double z = logits[i], a, slope;
            if (gate == PM_L2) {
                a = z;
                slope = 1;
            } else if (gate == PM_SOFTMAX) {
                a = exp((z - top) / temperature);
                slope = a / temperature;
            } else {
                if (noise) z = (z + log((double)noise[i]) - log1p(-(double)noise[i])) / temperature;
                const double s = 1 / (1 + exp(-z));
                a = gate == PM_STRAIGHT_THROUGH ? s > 0.5 : s;
                slope = s * (1 - s) / temperature;
            }
            gates[i] = (real)(a * keep);
            slopes[i] = (real)(slope * keep);
            sum += gate == PM_L2 ? a * keep * a * keep : a * keep;
        }
        const double length = sqrt(sum), n = average         ? sqrt((double)S / (double)Q)
                                             : gate == PM_L2 ? (length > 1e-12 ? length : 1e-12)
                                                             : sum + 1e-12;
        for (ptrdiff_t i = q * S; i < (q + 1) * S; i++) {
            weights[i] = (real)((double)gates[i] / n);
            slopes[i] = (real)((double)slopes[i] / (sum == 0 && !average ? 1 : n));
        }
    }
}

static void FN(task_router_bwd)(ptrdiff_t Q, ptrdiff_t S, const real *restrict dweights,
                                const real *restrict weights, const real *restrict slopes, int gate,
                                int average, real *restrict dlogits)
{
    for (ptrdiff_t q = 0; q < Q; q++) {
        double along = 0;
        for (ptrdiff_t i = q * S; i < (q + 1) * S && !average; i++)
            along += (double)dweights[i] * (double)weights[i];
        for (ptrdiff_t i = q * S; i < (q + 1) * S; i++) {
            const double w = gate == PM_L2 ? (double)weights[i] : 1;
            dlogits[i] += (real)((double)slopes[i] * ((double)dweights[i] - w * along));
        }
    }
}

/* Routers of tokens: softmax over the skills, and over the k largest logits alone. A tie goes to the lower index; a NaN is smallest.
 *   softmax  w[n,s] = exp(z[n,s] / temperature) / sum_i exp(z[n,i] / temperature)    dz[n,s] = w (dw - sum_i dw w) / temperature
 *   topk     the same (temperature 1) over the kept skills ids[n,:], largest first; the other dz are 0
 *   balance  P[s] = sum_n p[n,s], p the softmax of all logits    dz[n,s] = p (slope[s] - sum_i slope p)   slope = dloss/dp
 * logits [N,S]   weights ids [N,k] (softmax: [N,S]) */
PM_INLINE void FN(softmax_row)(ptrdiff_t S, const real *z, real temperature, real *w)
{
    real top = z[0];
    for (ptrdiff_t s = 1; s < S; s++) top = z[s] > top ? z[s] : top;
    vec acc = { 0 };
    for (ptrdiff_t s = 0; s < S; s += LANES) {
        const ptrdiff_t part = S - s < LANES ? S - s : LANES;
        const vec e = FN(vexp)((FN(load_part)(z + s, part, -INFINITY) - top) / temperature);
        FN(store_part)(w + s, part, e);
        acc += e;
    }
    const real sum = FN(vsum)(acc);
    for (ptrdiff_t s = 0; s < S; s++) w[s] /= sum;
}

static void FN(softmax_fwd)(ptrdiff_t N, ptrdiff_t S, const real *restrict logits, real temperature,
                            real *restrict weights)
{
    for (ptrdiff_t n = 0; n < N; n++) FN(softmax_row)(S, logits + n * S, temperature, weights + n * S);
}

static void FN(softmax_bwd)(ptrdiff_t N, ptrdiff_t S, const real *restrict dweights,
                            const real *restrict weights, real temperature, real *restrict dlogits)
{
    for (ptrdiff_t n = 0; n < N; n++, dweights += S, weights += S, dlogits += S) {
        real along = 0;
        for (ptrdiff_t s = 0; s < S; s++) along += dweights[s] * weights[s];
        for (ptrdiff_t s = 0; s < S; s++) dlogits[s] = weights[s] * (dweights[s] - along) / temperature;
    }
}

/* Whether the logit z of skill s comes before another one. */
PM_INLINE int FN(ranks_before)(real z, ptrdiff_t s, real other, ptrdiff_t s_other)
{
    if (z > other || (z == z && other != other)) return 1;
    return s < s_other && (z == other || (z != z && other != other));
}

static void FN(topk_fwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *restrict logits,
                         real *restrict weights, int64_t *restrict ids)
{
    for (ptrdiff_t n = 0; n < N; n++, logits += S, weights += k, ids += k) {
        for (ptrdiff_t i = 0; i < k; i++) {
            ptrdiff_t best = -1;
            for (ptrdiff_t s = 0; s < S; s++) {
                const int left = i == 0 || FN(ranks_before)(logits[ids[i - 1]], ids[i - 1], logits[s], s);
                if (left && (best < 0 || FN(ranks_before)(logits[s], s, logits[best], best))) best = s;
            }
            ids[i] = best;
            weights[i] = logits[best];
        }
        FN(softmax_row)(k, weights, 1, weights);
    }
}

static void FN(topk_bwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *restrict dweights,
                         const real *restrict weights, const int64_t *restrict ids, real *restrict dlogits)
{
    memset(dlogits, 0, sizeof(real) * N * S);
    for (ptrdiff_t n = 0; n < N; n++, dweights += k, weights += k, ids += k, dlogits += S) {
        real along = 0;
        for (ptrdiff_t i = 0; i < k; i++) along += dweights[i] * weights[i];
        for (ptrdiff_t i = 0; i < k; i++) dlogits[ids[i]] += weights[i] * (dweights[i] - along);
    }
}

/* row [S] is scratch */
static void FN(balance_fwd)(ptrdiff_t N, ptrdiff_t S, const real *restrict logits, real *restrict row,
                            double *restrict P)
{
    for (ptrdiff_t s = 0; s < S; s++) P[s] = 0;
    for (ptrdiff_t n = 0; n < N; n++) {
        FN(softmax_row)(S, logits + n * S, 1, row);
        for (ptrdiff_t s = 0; s < S; s++) P[s] += (double)row[s];
    }
}

static void FN(balance_bwd)(ptrdiff_t N, ptrdiff_t S, const real *restrict logits, const real *restrict slope,
                            real *restrict dlogits)
{
    for (ptrdiff_t n = 0; n < N; n++, logits += S, dlogits += S) {
        real along = 0;
        FN(softmax_row)(S, logits, 1, dlogits);
        for (ptrdiff_t s = 0; s < S; s++) along += slope[s] * dlogits[s];
        for (ptrdiff_t s = 0; s < S; s++) dlogits[s] *= slope[s] - along;
    }
}
