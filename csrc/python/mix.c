/* mix.c -- bindings of ops/mix.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                  \
    void pm_mix_fwd_##DT(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D,                  \
                         const real *weights, const real *bank, real scale, real *out);                    \
    int pm_mix_bwd_##DT(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, const real *dout, \
                        const real *weights, const real *bank, real scale, real *dweights, real *dbank);
DECLARE(float, f32)
DECLARE(double, f64)

static int heads_divide(ptrdiff_t Q, ptrdiff_t D)
{
    if (!PyErr_Occurred() && (Q < 1 || D % Q)) {
        PyErr_Format(PyExc_ValueError, "weights: expected a number of heads that divides %zd, got %zd",
                     (Py_ssize_t)D, (Py_ssize_t)Q);
    }
    return !PyErr_Occurred();
}

static PyObject *py_mix_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "mix_fwd")) return NULL;
    ptrdiff_t G = -1, Q = -1, S = -1, R = -1, D = -1;
    const int t = pm_real(args[0], "weights");
    const void *weights = pm_in(args[0], "weights", t, 3, &G, &Q, &S),
               *bank = pm_in(args[1], "bank", t, 3, &S, &R, &D);
    const double scale = pm_double(args[2], "scale");
    void *out = pm_out(args[3], "out", t, 3, &G, &R, &D);
    if (!heads_divide(Q, D)) return NULL;
    PM_CALL(t, pm_mix_fwd, G, Q, S, R, D, weights, bank, scale, out);
    Py_RETURN_NONE;
}

static PyObject *py_mix_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 6, "mix_bwd")) return NULL;
    ptrdiff_t G = -1, Q = -1, S = -1, R = -1, D = -1;
    const int t = pm_real(args[0], "dout");
    const void *dout = pm_in(args[0], "dout", t, 3, &G, &R, &D),
               *weights = pm_in(args[1], "weights", t, 3, &G, &Q, &S);
    const void *bank = pm_in(args[2], "bank", t, 3, &S, &R, &D);
    const double scale = pm_double(args[3], "scale");
    void *dweights = pm_out(args[4], "dweights", t, 3, &G, &Q, &S),
         *dbank = pm_out(args[5], "dbank", t, 3, &S, &R, &D);
    if (!heads_divide(Q, D)) return NULL;
    int failed;
    PM_TRY(failed, t, pm_mix_bwd, G, Q, S, R, D, dout, weights, bank, scale, dweights, dbank);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_mix[] = {
    PM_METHOD(mix_fwd, "mix_fwd(weights, bank, scale, out, /)\n--\n\nout[g,r,d] = scale * sum_s "
                       "weights[g,q(d),s] bank[s,r,d]"),
    PM_METHOD(mix_bwd,
              "mix_bwd(dout, weights, bank, scale, dweights, dbank, /)\n--\n\nGradients of mix_fwd."),
    { NULL, NULL, 0, NULL },
};
