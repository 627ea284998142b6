/* adam.c -- bindings of ops/adam.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                \
    void pm_adamw_step_##DT(ptrdiff_t N, ptrdiff_t n, const int64_t *offsets, const int64_t *lengths,    \
                            const double *lr, const double *weight_decay, double beta1, double beta2,    \
                            double eps, ptrdiff_t step, double grad_scale, const real *grad, real *data, \
                            real *m, real *v);                                                           \
    int pm_global_norm_##DT(ptrdiff_t N, ptrdiff_t n, const int64_t *offsets, const int64_t *lengths,    \
                            const real *grad, double *norm);
DECLARE(float, f32)
DECLARE(double, f64)

static void check_segments(ptrdiff_t N, ptrdiff_t n, const int64_t *offsets, const int64_t *lengths)
{
    for (ptrdiff_t i = 0, end = 0; i < n && !PyErr_Occurred(); i++) {
        if (offsets[i] < end || lengths[i] < 0 || offsets[i] > N || lengths[i] > N - offsets[i])
            PyErr_Format(PyExc_ValueError,
                         "offsets, lengths: expected ascending segments in 0 to %zd that do not overlap, got "
                         "%lld and %lld at position %zd",
                         (Py_ssize_t)N, (long long)offsets[i], (long long)lengths[i], (Py_ssize_t)i);
        end = offsets[i] + lengths[i];
    }
}

static double read_beta(PyObject *o, const char *name)
{
    const double beta = pm_double(o, name);
    if (!PyErr_Occurred() && !(beta >= 0 && beta < 1))
        PyErr_Format(PyExc_ValueError, "%s: expected a number in [0, 1), got %R", name, o);
    return beta;
}

static PyObject *py_adamw_step(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 13, "adamw_step")) return NULL;
    ptrdiff_t N = -1, n = -1;
    const int t = pm_real(args[0], "data");
    void *data = pm_out(args[0], "data", t, 1, &N);
    const void *grad = pm_in(args[1], "grad", t, 1, &N);
    void *m = pm_out(args[2], "m", t, 1, &N), *v = pm_out(args[3], "v", t, 1, &N);
    const int64_t *offsets = pm_in(args[4], "offsets", NPY_INT64, 1, &n),
                  *lengths = pm_in(args[5], "lengths", NPY_INT64, 1, &n);
    const double *lr = pm_in(args[6], "lr", NPY_FLOAT64, 1, &n),
                 *weight_decay = pm_in(args[7], "weight_decay", NPY_FLOAT64, 1, &n);
    const double beta1 = read_beta(args[8], "beta1"), beta2 = read_beta(args[9], "beta2"),
                 eps = pm_double(args[10], "eps");
    const ptrdiff_t step = pm_int(args[11], "step");
    const double grad_scale = pm_double(args[12], "grad_scale");
    if (!PyErr_Occurred() && step < 1)
        PyErr_Format(PyExc_ValueError, "step: expected 1 or more, got %zd", (Py_ssize_t)step);
    if (PyErr_Occurred()) return NULL;
    check_segments(N, n, offsets, lengths);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_adamw_step, N, n, offsets, lengths, lr, weight_decay, beta1, beta2, eps, step, grad_scale,
            grad, data, m, v);
    Py_RETURN_NONE;
}

static PyObject *py_global_norm(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "global_norm")) return NULL;
    ptrdiff_t N = -1, n = -1;
    const int t = pm_real(args[0], "grad");
    const void *grad = pm_in(args[0], "grad", t, 1, &N);
    const int64_t *offsets = pm_in(args[1], "offsets", NPY_INT64, 1, &n),
                  *lengths = pm_in(args[2], "lengths", NPY_INT64, 1, &n);
    if (PyErr_Occurred()) return NULL;
    check_segments(N, n, offsets, lengths);
    if (PyErr_Occurred()) return NULL;
    int failed;
    double norm;
    PM_TRY(failed, t, pm_global_norm, N, n, offsets, lengths, grad, &norm);
    return failed ? PyErr_NoMemory() : PyFloat_FromDouble(norm);
}

PyMethodDef pm_methods_adam[] = {
    PM_METHOD(adamw_step, "adamw_step(data, grad, m, v, offsets, lengths, lr, weight_decay, beta1, beta2, "
                          "eps, step, grad_scale, /)\n--\n\n"
                          "One step of AdamW on the segments, in place."),
    PM_METHOD(global_norm, "global_norm(grad, offsets, lengths, /)\n--\n\nEuclidean norm of the segments "
                           "together, summed in float64."),
    { NULL, NULL, 0, NULL },
};
