/* loss.c -- bindings of ops/loss.c. A loss is an array of shape (1,). */
#include "python.h"
#define DECLARE(real, DT)                                                                                \
    void pm_cross_entropy_fwd_##DT(ptrdiff_t B, ptrdiff_t C, const real *logits, const int64_t *labels,  \
                                   const int64_t *starts, const int64_t *ends, const real *weights,      \
                                   real *loss, real *per_example, real *lse);                            \
    void pm_cross_entropy_bwd_##DT(ptrdiff_t B, ptrdiff_t C, const real *dloss, const real *logits,      \
                                   const int64_t *labels, const int64_t *starts, const int64_t *ends,    \
                                   const real *weights, const real *lse, real *dlogits);                 \
    void pm_mse_fwd_##DT(ptrdiff_t B, const real *predictions, const real *targets, const real *weights, \
                         real *loss, real *per_example);                                                 \
    void pm_mse_bwd_##DT(ptrdiff_t B, const real *dloss, const real *predictions, const real *targets,   \
                         const real *weights, real *dpredictions);
DECLARE(float, f32)
DECLARE(double, f64)

/* Every row: 0 <= start < end <= C and a label in [start, end). */
static void check_labels(ptrdiff_t B, ptrdiff_t C, const int64_t *labels, const int64_t *starts,
                         const int64_t *ends)
{
    for (ptrdiff_t b = 0; b < B && !PyErr_Occurred(); b++) {
        const long long start = starts ? starts[b] : 0, end = ends ? ends[b] : C, label = labels[b];
        if (start < 0 || start >= end || end > C)
            PyErr_Format(PyExc_ValueError,
                         "starts, ends: expected 0 <= start < end <= %zd, got %lld and %lld in row %zd",
                         (Py_ssize_t)C, start, end, (Py_ssize_t)b);
        else if (label < start || label >= end)
            PyErr_Format(PyExc_ValueError, "labels: expected %lld to %lld in row %zd, got %lld", start,
                         end - 1, (Py_ssize_t)b, label);
    }
}

static PyObject *py_cross_entropy_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 8, "cross_entropy_fwd")) return NULL;
    ptrdiff_t B = -1, C = -1, one = 1;
    const int t = pm_real(args[0], "logits");
    const void *logits = pm_in(args[0], "logits", t, 2, &B, &C);
    const int64_t *labels = pm_in(args[1], "labels", NPY_INT64, 1, &B),
                  *starts = pm_in_or_none(args[2], "starts", NPY_INT64, 1, &B);
    const int64_t *ends = pm_in_or_none(args[3], "ends", NPY_INT64, 1, &B);
    const void *weights = pm_in_or_none(args[4], "weights", t, 1, &B);
    void *loss = pm_out(args[5], "loss", t, 1, &one), *per_example = pm_out(args[6], "per_example", t, 1, &B);
    void *lse = pm_out(args[7], "lse", t, 1, &B);
    check_labels(B, C, labels, starts, ends);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_cross_entropy_fwd, B, C, logits, labels, starts, ends, weights, loss, per_example, lse);
    Py_RETURN_NONE;
}

static PyObject *py_cross_entropy_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 8, "cross_entropy_bwd")) return NULL;
    ptrdiff_t B = -1, C = -1, one = 1;
    const int t = pm_real(args[1], "logits");
    const void *dloss = pm_in(args[0], "dloss", t, 1, &one), *logits = pm_in(args[1], "logits", t, 2, &B, &C);
    const int64_t *labels = pm_in(args[2], "labels", NPY_INT64, 1, &B),
                  *starts = pm_in_or_none(args[3], "starts", NPY_INT64, 1, &B);
    const int64_t *ends = pm_in_or_none(args[4], "ends", NPY_INT64, 1, &B);
    const void *weights = pm_in_or_none(args[5], "weights", t, 1, &B), *lse = pm_in(args[6], "lse", t, 1, &B);
    void *dlogits = pm_out(args[7], "dlogits", t, 2, &B, &C);
    check_labels(B, C, labels, starts, ends);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_cross_entropy_bwd, B, C, dloss, logits, labels, starts, ends, weights, lse, dlogits);
    Py_RETURN_NONE;
}

static PyObject *py_mse_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 5, "mse_fwd")) return NULL;
    ptrdiff_t B = -1, one = 1;
    const int t = pm_real(args[0], "predictions");
    const void *predictions = pm_in(args[0], "predictions", t, 1, &B),
               *targets = pm_in(args[1], "targets", t, 1, &B);
    const void *weights = pm_in_or_none(args[2], "weights", t, 1, &B);
    void *loss = pm_out(args[3], "loss", t, 1, &one), *per_example = pm_out(args[4], "per_example", t, 1, &B);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_mse_fwd, B, predictions, targets, weights, loss, per_example);
    Py_RETURN_NONE;
}

static PyObject *py_mse_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 5, "mse_bwd")) return NULL;
    ptrdiff_t B = -1, one = 1;
    const int t = pm_real(args[1], "predictions");
    const void *dloss = pm_in(args[0], "dloss", t, 1, &one),
               *predictions = pm_in(args[1], "predictions", t, 1, &B);
    const void *targets = pm_in(args[2], "targets", t, 1, &B),
               *weights = pm_in_or_none(args[3], "weights", t, 1, &B);
    void *dpredictions = pm_out(args[4], "dpredictions", t, 1, &B);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_mse_bwd, B, dloss, predictions, targets, weights, dpredictions);
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_loss[] = {
    PM_METHOD(cross_entropy_fwd,
              "cross_entropy_fwd(logits, labels, starts, ends, weights, loss, per_example, lse, /)\n--\n\n"
              "Mean cross entropy; row b is a softmax over columns starts[b] to ends[b] - 1."),
    PM_METHOD(cross_entropy_bwd,
              "cross_entropy_bwd(dloss, logits, labels, starts, ends, weights, lse, dlogits, /)\n--\n\n"
              "Gradient of cross_entropy_fwd."),
    PM_METHOD(mse_fwd,
              "mse_fwd(predictions, targets, weights, loss, per_example, /)\n--\n\nMean squared error."),
    PM_METHOD(mse_bwd,
              "mse_bwd(dloss, predictions, targets, weights, dpredictions, /)\n--\n\nGradient of mse_fwd."),
    { NULL, NULL, 0, NULL },
};
