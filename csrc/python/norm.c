/* norm.c -- bindings of ops/norm.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                    \
    void pm_layer_norm_fwd_##DT(ptrdiff_t N, ptrdiff_t D, const real *x, const real *residual,               \
                                const real *weight, const real *bias, real eps, real *y, real *mean,         \
                                real *rstd);                                                                 \
    int pm_layer_norm_bwd_##DT(ptrdiff_t N, ptrdiff_t D, const real *dy, const real *x,                      \
                               const real *residual, const real *weight, const real *bias,                   \
                               const real *inverse, const real *mean, const real *rstd, real *dx,            \
                               real *dweight, real *dbias);                                                  \
    void pm_rms_norm_fwd_##DT(ptrdiff_t N, ptrdiff_t D, const real *x, const real *weight, real eps,         \
                              real *y, real *rstd);                                                          \
    int pm_rms_norm_bwd_##DT(ptrdiff_t N, ptrdiff_t D, const real *dy, const real *x, const real *weight,    \
                             const real *inverse, const real *rstd, real *dx, real *dweight);                \
    void pm_l2_normalize_fwd_##DT(ptrdiff_t N, ptrdiff_t D, const real *x, real eps, real *y, real *norm);   \
    void pm_l2_normalize_bwd_##DT(ptrdiff_t N, ptrdiff_t D, const real *dy, const real *y, const real *norm, \
                                  real *dx);
DECLARE(float, f32)
DECLARE(double, f64)

static PyObject *py_layer_norm_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 8, "layer_norm_fwd")) return NULL;
    ptrdiff_t N = -1, D = -1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 2, &N, &D),
               *residual = pm_in_or_none(args[1], "residual", t, 2, &N, &D);
    const void *weight = pm_in(args[2], "weight", t, 1, &D), *bias = pm_in(args[3], "bias", t, 1, &D);
    const double eps = pm_double(args[4], "eps");
    void *y = pm_out(args[5], "y", t, 2, &N, &D), *mean = pm_out(args[6], "mean", t, 1, &N),
         *rstd = pm_out(args[7], "rstd", t, 1, &N);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_layer_norm_fwd, N, D, x, residual, weight, bias, eps, y, mean, rstd);
    Py_RETURN_NONE;
}

static PyObject *py_layer_norm_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 11, "layer_norm_bwd")) return NULL;
    ptrdiff_t N = -1, D = -1;
    const int t = pm_real(args[0], "dy");
    const void *dy = pm_in(args[0], "dy", t, 2, &N, &D), *x = pm_in(args[1], "x", t, 2, &N, &D);
    const void *residual = pm_in_or_none(args[2], "residual", t, 2, &N, &D),
               *weight = pm_in(args[3], "weight", t, 1, &D);
    const void *inverse = pm_in_or_none(args[5], "inverse", t, 1, &D),
               *bias = inverse ? pm_in(args[4], "bias", t, 1, &D) : NULL;
    const void *mean = pm_in(args[6], "mean", t, 1, &N), *rstd = pm_in(args[7], "rstd", t, 1, &N);
    void *dx = pm_out(args[8], "dx", t, 2, &N, &D);
    void *dweight = pm_out_or_none(args[9], "dweight", t, 1, &D),
         *dbias = pm_out_or_none(args[10], "dbias", t, 1, &D);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_layer_norm_bwd, N, D, dy, x, residual, weight, bias, inverse, mean, rstd, dx,
           dweight, dbias);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_rms_norm_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 5, "rms_norm_fwd")) return NULL;
    ptrdiff_t N = -1, D = -1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 2, &N, &D), *weight = pm_in(args[1], "weight", t, 1, &D);
    const double eps = pm_double(args[2], "eps");
    void *y = pm_out(args[3], "y", t, 2, &N, &D), *rstd = pm_out(args[4], "rstd", t, 1, &N);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_rms_norm_fwd, N, D, x, weight, eps, y, rstd);
    Py_RETURN_NONE;
}

static PyObject *py_rms_norm_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 7, "rms_norm_bwd")) return NULL;
    ptrdiff_t N = -1, D = -1;
    const int t = pm_real(args[0], "dy");
    const void *dy = pm_in(args[0], "dy", t, 2, &N, &D), *x = pm_in(args[1], "x", t, 2, &N, &D);
    const void *weight = pm_in(args[2], "weight", t, 1, &D),
               *inverse = pm_in_or_none(args[3], "inverse", t, 1, &D),
               *rstd = pm_in(args[4], "rstd", t, 1, &N);
    void *dx = pm_out(args[5], "dx", t, 2, &N, &D), *dweight = pm_out_or_none(args[6], "dweight", t, 1, &D);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_rms_norm_bwd, N, D, dy, x, weight, inverse, rstd, dx, dweight);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_l2_normalize_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "l2_normalize_fwd")) return NULL;
    ptrdiff_t B = -1, D = -1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 2, &B, &D);
    const double eps = pm_double(args[1], "eps");
    void *y = pm_out(args[2], "y", t, 2, &B, &D), *norm = pm_out(args[3], "norm", t, 1, &B);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_l2_normalize_fwd, B, D, x, eps, y, norm);
    Py_RETURN_NONE;
}

static PyObject *py_l2_normalize_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "l2_normalize_bwd")) return NULL;
    ptrdiff_t B = -1, D = -1;
    const int t = pm_real(args[0], "dy");
    const void *dy = pm_in(args[0], "dy", t, 2, &B, &D), *y = pm_in(args[1], "y", t, 2, &B, &D);
    const void *norm = pm_in(args[2], "norm", t, 1, &B);
    void *dx = pm_out(args[3], "dx", t, 2, &B, &D);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_l2_normalize_bwd, B, D, dy, y, norm, dx);
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_norm[] = {
    PM_METHOD(layer_norm_fwd, "layer_norm_fwd(x, residual, weight, bias, eps, y, mean, rstd, "
                              "/)\n--\n\nNormalise the rows of x + residual."),
    PM_METHOD(layer_norm_bwd,
              "layer_norm_bwd(dy, x, residual, weight, bias, inverse, mean, rstd, dx, dweight, dbias, "
              "/)\n--\n\nGradients of layer_norm_fwd."),
    PM_METHOD(rms_norm_fwd, "rms_norm_fwd(x, weight, eps, y, rstd, /)\n--\n\nDivide the rows of x by their "
                            "root mean square."),
    PM_METHOD(rms_norm_bwd,
              "rms_norm_bwd(dy, x, weight, inverse, rstd, dx, dweight, /)\n--\n\nGradients of rms_norm_fwd."),
    PM_METHOD(l2_normalize_fwd,
              "l2_normalize_fwd(x, eps, y, norm, /)\n--\n\nDivide rows by their length, at least eps."),
    PM_METHOD(l2_normalize_bwd, "l2_normalize_bwd(dy, y, norm, dx, /)\n--\n\nGradient of l2_normalize_fwd."),
    { NULL, NULL, 0, NULL },
};
