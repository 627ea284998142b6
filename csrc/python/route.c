/* route.c -- bindings of ops/route.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                    \
    void pm_task_router_fwd_##DT(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, const real *logits,                  \
                                 const int64_t *task_ids, const real *noise, const real *mask,               \
                                 double temperature, int gate, int average, real *weights, real *gates,      \
                                 real *slopes);                                                              \
    void pm_task_router_bwd_##DT(ptrdiff_t T, ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, const real *dweights,   \
                                 const int64_t *task_ids, const real *weights, const real *slopes, int gate, \
                                 int average, real *dlogits);                                                \
    void pm_softmax_router_fwd_##DT(ptrdiff_t N, ptrdiff_t S, const real *logits, double temperature,        \
                                    real *weights);                                                          \
    void pm_softmax_router_bwd_##DT(ptrdiff_t N, ptrdiff_t S, const real *dweights, const real *weights,     \
                                    double temperature, real *dlogits);                                      \
    void pm_topk_router_fwd_##DT(ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *logits, real *weights,   \
                                 int64_t *ids);                                                              \
    void pm_topk_router_bwd_##DT(ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *dweights,                \
                                 const real *weights, const int64_t *ids, real *dlogits);                    \
    int pm_balance_loss_fwd_##DT(ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *logits,                  \
                                 const int64_t *ids, real *loss, real *fractions);                           \
    int pm_balance_loss_bwd_##DT(ptrdiff_t N, ptrdiff_t S, const real *dloss, const real *logits,            \
                                 const real *fractions, real *dlogits);
DECLARE(float, f32)
DECLARE(double, f64)

static double read_temperature(PyObject *o)
{
    const double temperature = pm_double(o, "temperature");
    if (!PyErr_Occurred() && !(temperature > 0))
        PyErr_Format(PyExc_ValueError, "temperature: expected a positive number, got %R", o);
    return temperature;
}

static int read_gate(PyObject *o)
{
    const ptrdiff_t gate = pm_int(o, "gate");
    if (!PyErr_Occurred() && (gate < 0 || gate >= PM_GATES))
        PyErr_Format(PyExc_ValueError, "gate: expected 0 to %d, got %zd", PM_GATES - 1, (Py_ssize_t)gate);
    return (int)gate;
}

static PyObject *py_task_router_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 10, "task_router_fwd")) return NULL;
    ptrdiff_t T = -1, G = -1, Q = -1, S = -1;
    const int t = pm_real(args[0], "logits");
    const void *logits = pm_in(args[0], "logits", t, 3, &T, &Q, &S);
    const int64_t *task_ids = pm_in(args[1], "task_ids", NPY_INT64, 1, &G);
    const void *noise = pm_in_or_none(args[2], "noise", t, 3, &G, &Q, &S),
               *mask = pm_in_or_none(args[3], "mask", t, 3, &G, &Q, &S);
    const double temperature = read_temperature(args[4]);
    const int gate = read_gate(args[5]), average = (int)pm_int(args[6], "average");
    void *weights = pm_out(args[7], "weights", t, 3, &G, &Q, &S),
         *gates = pm_out(args[8], "gates", t, 3, &G, &Q, &S),
         *slopes = pm_out(args[9], "slopes", t, 3, &G, &Q, &S);
    pm_check_index(task_ids, G, T, "task_ids");
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_task_router_fwd, G, Q, S, logits, task_ids, noise, mask, temperature, gate, average,
            weights, gates, slopes);
    Py_RETURN_NONE;
}

static PyObject *py_task_router_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 7, "task_router_bwd")) return NULL;
    ptrdiff_t T = -1, G = -1, Q = -1, S = -1;
    const int t = pm_real(args[0], "dweights");
    const void *dweights = pm_in(args[0], "dweights", t, 3, &G, &Q, &S);
    const int64_t *task_ids = pm_in(args[1], "task_ids", NPY_INT64, 1, &G);
    const void *weights = pm_in(args[2], "weights", t, 3, &G, &Q, &S),
               *slopes = pm_in(args[3], "slopes", t, 3, &G, &Q, &S);
    const int gate = read_gate(args[4]), average = (int)pm_int(args[5], "average");
    void *dlogits = pm_out(args[6], "dlogits", t, 3, &T, &Q, &S);
    pm_check_index(task_ids, G, T, "task_ids");
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_task_router_bwd, T, G, Q, S, dweights, task_ids, weights, slopes, gate, average, dlogits);
    Py_RETURN_NONE;
}

/* [N,S] logits: at least one skill. */
static const void *read_logits(PyObject *o, int t, ptrdiff_t *N, ptrdiff_t *S)
{
    const void *logits = pm_in(o, "logits", t, 2, N, S);
    if (logits && *S < 1) PyErr_SetString(PyExc_ValueError, "logits: expected at least one column, got none");
    return logits;
}

static PyObject *py_softmax_router_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "softmax_router_fwd")) return NULL;
    ptrdiff_t N = -1, S = -1;
    const int t = pm_real(args[0], "logits");
    const void *logits = read_logits(args[0], t, &N, &S);
    const double temperature = read_temperature(args[1]);
    void *weights = pm_out(args[2], "weights", t, 2, &N, &S);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_softmax_router_fwd, N, S, logits, temperature, weights);
    Py_RETURN_NONE;
}

static PyObject *py_softmax_router_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "softmax_router_bwd")) return NULL;
    ptrdiff_t N = -1, S = -1;
    const int t = pm_real(args[1], "weights");
    const void *dweights = pm_in(args[0], "dweights", t, 2, &N, &S),
               *weights = pm_in(args[1], "weights", t, 2, &N, &S);
    const double temperature = read_temperature(args[2]);
    void *dlogits = pm_out(args[3], "dlogits", t, 2, &N, &S);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_softmax_router_bwd, N, S, dweights, weights, temperature, dlogits);
    Py_RETURN_NONE;
}

static void check_k(ptrdiff_t k, ptrdiff_t S)
{
    if (!PyErr_Occurred() && (k < 1 || k > S))
        PyErr_Format(PyExc_ValueError, "k: expected 1 to %zd, got %zd", (Py_ssize_t)S, (Py_ssize_t)k);
}

static PyObject *py_topk_router_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "topk_router_fwd")) return NULL;
    ptrdiff_t N = -1, S = -1, k = -1;
    const int t = pm_real(args[0], "logits");
    const void *logits = read_logits(args[0], t, &N, &S);
    void *weights = pm_out(args[1], "weights", t, 2, &N, &k);
    int64_t *ids = pm_out(args[2], "ids", NPY_INT64, 2, &N, &k);
    check_k(k, S);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_topk_router_fwd, N, S, k, logits, weights, ids);
    Py_RETURN_NONE;
}

static PyObject *py_topk_router_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "topk_router_bwd")) return NULL;
    ptrdiff_t N = -1, S = -1, k = -1;
    const int t = pm_real(args[1], "weights");
    const void *dweights = pm_in(args[0], "dweights", t, 2, &N, &k),
               *weights = pm_in(args[1], "weights", t, 2, &N, &k);
    const int64_t *ids = pm_in(args[2], "ids", NPY_INT64, 2, &N, &k);
    void *dlogits = pm_out(args[3], "dlogits", t, 2, &N, &S);
    pm_check_index(ids, N * k, S, "ids");
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_topk_router_bwd, N, S, k, dweights, weights, ids, dlogits);
    Py_RETURN_NONE;
}

static PyObject *py_balance_loss_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "balance_loss_fwd")) return NULL;
    ptrdiff_t N = -1, S = -1, k = -1, one = 1;
    const int t = pm_real(args[0], "logits");
    const void *logits = read_logits(args[0], t, &N, &S);
    const int64_t *ids = pm_in(args[1], "ids", NPY_INT64, 2, &N, &k);
    void *loss = pm_out(args[2], "loss", t, 1, &one), *fractions = pm_out(args[3], "fractions", t, 1, &S);
    pm_check_index(ids, N * k, S, "ids");
    check_k(k, S);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_balance_loss_fwd, N, S, k, logits, ids, loss, fractions);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_balance_loss_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "balance_loss_bwd")) return NULL;
    ptrdiff_t N = -1, S = -1, one = 1;
    const int t = pm_real(args[1], "logits");
    const void *dloss = pm_in(args[0], "dloss", t, 1, &one), *logits = read_logits(args[1], t, &N, &S),
               *fractions = pm_in(args[2], "fractions", t, 1, &S);
    void *dlogits = pm_out(args[3], "dlogits", t, 2, &N, &S);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_balance_loss_bwd, N, S, dloss, logits, fractions, dlogits);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_route[] = {
    PM_METHOD(task_router_fwd,
              "task_router_fwd(logits, task_ids, noise, mask, temperature, gate, average, weights, gates, "
              "slopes, /)\n--\n\nNormalised gates of the task of every group."),
    PM_METHOD(task_router_bwd,
              "task_router_bwd(dweights, task_ids, weights, slopes, gate, average, dlogits, /)\n--\n\n"
              "Gradient of task_router_fwd."),
    PM_METHOD(softmax_router_fwd,
              "softmax_router_fwd(logits, temperature, weights, /)\n--\n\nsoftmax(logits / temperature)."),
    PM_METHOD(softmax_router_bwd, "softmax_router_bwd(dweights, weights, temperature, dlogits, /)\n--\n\n"
                                  "Gradient of softmax_router_fwd."),
    PM_METHOD(topk_router_fwd, "topk_router_fwd(logits, weights, ids, /)\n--\n\n"
                               "Softmax over the largest logits alone, as many as weights has columns."),
    PM_METHOD(topk_router_bwd, "topk_router_bwd(dweights, weights, ids, dlogits, /)\n--\n\n"
                               "Gradient of topk_router_fwd."),
    PM_METHOD(balance_loss_fwd, "balance_loss_fwd(logits, ids, loss, fractions, /)\n--\n\n"
                                "S times the sum of share of choices times mean probability."),
    PM_METHOD(balance_loss_bwd, "balance_loss_bwd(dloss, logits, fractions, dlogits, /)\n--\n\n"
                                "Gradient of balance_loss_fwd."),
    { NULL, NULL, 0, NULL },
};
