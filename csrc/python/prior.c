/* prior.c -- bindings of ops/prior.c. */
#include "python.h"
#define DECLARE(real, DT)                                                               \
    int pm_ibp_loss_fwd_##DT(ptrdiff_t T, ptrdiff_t C, const real *logits, real *loss); \
    void pm_ibp_loss_bwd_##DT(ptrdiff_t T, ptrdiff_t C, const real *dloss, const real *logits, real *dlogits);
DECLARE(float, f32)
DECLARE(double, f64)

static PyObject *py_ibp_loss_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 2, "ibp_loss_fwd")) return NULL;
    ptrdiff_t T = -1, C = -1, one = 1;
    const int t = pm_real(args[0], "logits");
    const void *logits = pm_in(args[0], "logits", t, 2, &T, &C);
    void *loss = pm_out(args[1], "loss", t, 1, &one);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_ibp_loss_fwd, T, C, logits, loss);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_ibp_loss_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "ibp_loss_bwd")) return NULL;
    ptrdiff_t T = -1, C = -1, one = 1;
    const int t = pm_real(args[1], "logits");
    const void *dloss = pm_in(args[0], "dloss", t, 1, &one), *logits = pm_in(args[1], "logits", t, 2, &T, &C);
    void *dlogits = pm_out(args[2], "dlogits", t, 2, &T, &C);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_ibp_loss_bwd, T, C, dloss, logits, dlogits);
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_prior[] = {
    PM_METHOD(ibp_loss_fwd,
              "ibp_loss_fwd(logits, loss, /)\n--\n\nIndian buffet prior of who uses what: logits > 0."),
    PM_METHOD(ibp_loss_bwd, "ibp_loss_bwd(dloss, logits, dlogits, /)\n--\n\nGradient of ibp_loss_fwd."),
    { NULL, NULL, 0, NULL },
};
