/* route.c -- bindings of ops/route.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                  \
    void pm_task_router_fwd_##DT(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, const real *logits,                \
                                 const int64_t *task_ids, const real *noise, double temperature,           \
                                 real *weights, real *gates);                                              \
    void pm_task_router_bwd_##DT(ptrdiff_t T, ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, const real *dweights, \
                                 const int64_t *task_ids, const real *weights, const real *gates,          \
                                 double temperature, real *dlogits);
DECLARE(float, f32)
DECLARE(double, f64)

static double read_temperature(PyObject *o)
{
    const double temperature = pm_double(o, "temperature");
    if (!PyErr_Occurred() && !(temperature > 0))
        PyErr_Format(PyExc_ValueError, "temperature: expected a positive number, got %R", o);
    return temperature;
}

static PyObject *py_task_router_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 6, "task_router_fwd")) return NULL;
    ptrdiff_t T = -1, G = -1, Q = -1, S = -1;
    const int t = pm_real(args[0], "logits");
    const void *logits = pm_in(args[0], "logits", t, 3, &T, &Q, &S);
    const int64_t *task_ids = pm_in(args[1], "task_ids", NPY_INT64, 1, &G);
    const void *noise = pm_in_or_none(args[2], "noise", t, 3, &G, &Q, &S);
    const double temperature = read_temperature(args[3]);
    void *weights = pm_out(args[4], "weights", t, 3, &G, &Q, &S),
         *gates = pm_out(args[5], "gates", t, 3, &G, &Q, &S);
    pm_check_index(task_ids, G, T, "task_ids");
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_task_router_fwd, G, Q, S, logits, task_ids, noise, temperature, weights, gates);
    Py_RETURN_NONE;
}

static PyObject *py_task_router_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 6, "task_router_bwd")) return NULL;
    ptrdiff_t T = -1, G = -1, Q = -1, S = -1;
    const int t = pm_real(args[0], "dweights");
    const void *dweights = pm_in(args[0], "dweights", t, 3, &G, &Q, &S);
    const int64_t *task_ids = pm_in(args[1], "task_ids", NPY_INT64, 1, &G);
    const void *weights = pm_in(args[2], "weights", t, 3, &G, &Q, &S),
               *gates = pm_in(args[3], "gates", t, 3, &G, &Q, &S);
    const double temperature = read_temperature(args[4]);
    void *dlogits = pm_out(args[5], "dlogits", t, 3, &T, &Q, &S);
    pm_check_index(task_ids, G, T, "task_ids");
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_task_router_bwd, T, G, Q, S, dweights, task_ids, weights, gates, temperature, dlogits);
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_route[] = {
    PM_METHOD(task_router_fwd,
              "task_router_fwd(logits, task_ids, noise, temperature, weights, gates, /)\n--\n\n"
              "Normalised (Gumbel-)sigmoid gates of the task of every group."),
    PM_METHOD(task_router_bwd,
              "task_router_bwd(dweights, task_ids, weights, gates, temperature, dlogits, /)\n--\n\n"
              "Gradient of task_router_fwd; temperature 1 where there was no noise."),
    { NULL, NULL, 0, NULL },
};
