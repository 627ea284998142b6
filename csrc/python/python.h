/* python.h -- how a binding reads its arguments. Checks are strict here (exact dtype, shape, C-contiguity, index ranges);
 * polymoe/functional.py is where arrays are converted and allocated.
 *
 * Errors are sticky: once one is set every reader returns NULL at once, so a binding reads all its arguments and asks
 * PyErr_Occurred() a single time. An extent passed as -1 is bound by the first array that has it and checked by the others. */
#ifndef PM_PYTHON_H
#define PM_PYTHON_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_25_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL polymoe_ARRAY_API
#ifndef PM_IMPORT_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
#include "../ops/linear.h"

/* The dtype of a real-valued array: NPY_FLOAT32 or NPY_FLOAT64; anything else is a TypeError and -1. */
int pm_real(PyObject *o, const char *name);
/* The data of an array of exactly this dtype and rank; each extent is a ptrdiff_t* (bound when -1, else checked). */
const void *pm_in(PyObject *o, const char *name, int type, int ndim, ...);
void *pm_out(PyObject *o, const char *name, int type, int ndim, ...); /* the same, writeable */
const void *pm_in_or_none(PyObject *o, const char *name, int type, int ndim, ...); /* NULL for None */
void *pm_out_or_none(PyObject *o, const char *name, int type, int ndim, ...);
/* The shape of the panels of a weight [O,D] of this dtype; NPY_UINT16 is bfloat16. */
struct pm_panels {
    ptrdiff_t n, depth, width;
};
struct pm_panels pm_panels_of(int type, ptrdiff_t O, ptrdiff_t D);
/* Panels of a weight [O,D] for arrays of this dtype, or of bfloat16 (then they are uint16); None is allowed. */
struct pm_weight pm_weight_or_none(PyObject *o, int type, ptrdiff_t O, ptrdiff_t D);
ptrdiff_t pm_int(PyObject *o, const char *name);
double pm_double(PyObject *o, const char *name);
/* Every index in [0, end); offsets start at 0, never fall, end at N. */
void pm_check_index(const int64_t *index, ptrdiff_t n, ptrdiff_t end, const char *name);
void pm_check_offsets(const int64_t *offsets, ptrdiff_t B, ptrdiff_t N, const char *name);
#define pm_check_cu_seqlens(cu_seqlens, B, N) pm_check_offsets(cu_seqlens, B, N, "cu_seqlens")
/* The group, out of G, of each of B examples of N tokens: adapter_ids [B] or NULL, cu_seqlens [offsets] or NULL for one example.
 * Finds B where adapter_ids is NULL. */
void pm_check_groups(const int64_t *adapter_ids, ptrdiff_t *B, const int64_t *cu_seqlens, ptrdiff_t offsets,
                     ptrdiff_t N, ptrdiff_t G);
/* Of a pair of factors [.,R,D] and [.,R,O]: none may be empty. -1 with Python's error set, also when it was before. */
int pm_check_pair(ptrdiff_t R, ptrdiff_t D, ptrdiff_t O);
int pm_nargs(Py_ssize_t got, Py_ssize_t expected,
             const char *name); /* -1 with a TypeError when they differ */

/* Call op_f32 or op_f64. The arrays are void*, so both lines type-check. */
#define PM_CALL(type, op, ...)                            \
    do {                                                  \
        PyThreadState *without_gil = PyEval_SaveThread(); \
        if ((type) == NPY_FLOAT32) op##_f32(__VA_ARGS__); \
        else op##_f64(__VA_ARGS__);                       \
        PyEval_RestoreThread(without_gil);                \
    } while (0)
/* The same for an op that returns -1 when memory is out. */
#define PM_TRY(failed, type, op, ...)                                                   \
    do {                                                                                \
        PyThreadState *without_gil = PyEval_SaveThread();                               \
        failed = (type) == NPY_FLOAT32 ? op##_f32(__VA_ARGS__) : op##_f64(__VA_ARGS__); \
        PyEval_RestoreThread(without_gil);                                              \
    } while (0)
#define PM_METHOD(name, doc) { #name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, doc }

/* One table of methods per file of bindings; core.c adds them all to the module. */
extern PyMethodDef pm_methods_dense[], pm_methods_linear[], pm_methods_elementwise[], pm_methods_norm[],
    pm_methods_attention[], pm_methods_gather[], pm_methods_loss[], pm_methods_route[], pm_methods_adam[],
    pm_methods_random[], pm_methods_mix[], pm_methods_tensor[], pm_methods_prior[], pm_methods_pool[],
    pm_methods_moe[], pm_methods_rope[], pm_methods_expert_dense[];
extern PyMethodDef pm_methods_runtime[];
#endif
