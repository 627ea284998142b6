/* route.h -- the task router's weights of one group: a gate for each head and skill, normalised over the skills.
 *   z' = (z + log u - log(1 - u)) / temperature with noise u (Gumbel-sigmoid), z' = z without
 *   s = sigmoid(z')    w[q,j] = s[q,j] / (sum_i s[q,i] + 1e-12)
 *   dz[q,j] += s (1 - s) / temperature * (dw[q,j] - sum_i dw[q,i] w[q,i]) / (sum_i s[q,i] + 1e-12)    temperature 1 without noise
 * logits noise weights gates [Q,S]. Few values: plain libm in float64. */

static void FN(task_router_fwd)(ptrdiff_t Q, ptrdiff_t S, const real *restrict logits,
                                const real *restrict noise, double temperature, real *restrict weights,
                                real *restrict gates)
{
    for (ptrdiff_t q = 0; q < Q; q++) {
        double sum = 1e-12;
        for (ptrdiff_t i = q * S; i < (q + 1) * S; i++) {
            double z = logits[i];
            if (noise) z = (z + log((double)noise[i]) - log1p(-(double)noise[i])) / temperature;
            const double s = 1 / (1 + exp(-z));
            gates[i] = (real)s;
            sum += s;
        }
        for (ptrdiff_t i = q * S; i < (q + 1) * S; i++) weights[i] = (real)((double)gates[i] / sum);
    }
}

static void FN(task_router_bwd)(ptrdiff_t Q, ptrdiff_t S, const real *restrict dweights,
                                const real *restrict weights, const real *restrict gates, double temperature,
                                real *restrict dlogits)
{
    for (ptrdiff_t q = 0; q < Q; q++) {
        double sum = 1e-12, along = 0;
        for (ptrdiff_t i = q * S; i < (q + 1) * S; i++) {
            sum += (double)gates[i];
            along += (double)dweights[i] * (double)weights[i];
        }
        for (ptrdiff_t i = q * S; i < (q + 1) * S; i++) {
            const double s = gates[i];
            dlogits[i] += (real)(s * (1 - s) / temperature * ((double)dweights[i] - along) / sum);
        }
    }
}
