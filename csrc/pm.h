/* pm.h -- the contract between kernels, ops and bindings. Read this first.
 *
 * Extents: B examples, N packed tokens, L tokens of one example, D in, O out, R rank, S skills (experts), Q heads (n_splits),
 * T tasks, G groups (distinct routing rows). An upper-case letter is an extent, the lower-case one its index.
 * Sizes come first, then inputs (const), then outputs; gradients are `d` + name. Arrays are C-contiguous unless a leading
 * dimension (ldx) is passed.
 *
 * A kernel is serial, allocates nothing, cannot fail, and includes nothing. Its text is written once in `real` and `vec`
 * and compiled once per instruction set (csrc/isa); threads belong to csrc/ops, checks to csrc/python. */
#ifndef PM_H
#define PM_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PM_CAT_(a, b) a##_##b
#define PM_CAT(a, b) PM_CAT_(a, b)
#define PM_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define PM_TARGET_BEGIN(t) PM_PRAGMA(clang attribute push(__attribute__((target(t))), apply_to = function))
#define PM_TARGET_END PM_PRAGMA(clang attribute pop)
#else
#define PM_TARGET_BEGIN(t)      \
    PM_PRAGMA(GCC push_options) \
    PM_PRAGMA(GCC target(t))
#define PM_TARGET_END PM_PRAGMA(GCC pop_options)
#endif
#define PM_INLINE static inline __attribute__((always_inline))
/* A loop over a tile: its bounds are constants, its arrays registers. */
#define PM_UNROLLED_FOR PM_PRAGMA(GCC unroll 16) for
#define PM_ALIGN 64 /* bytes: a cache line, and the widest register */
#define PM_CHUNK 128 /* tokens: sums over tokens are split here and nowhere else, whatever the threads */
#define PM_BF16_COLUMNS 16 /* of a panel of bfloat16: pairs of two rows fill a cache line */
#define PM_STAGE 512 /* columns of a staged block of tokens: products are summed in blocks of so many */
#define PM_STRIDE 528 /* its row stride: a constant, and no power of two, so rows do not share cache sets */

enum pm_gate { PM_SIGMOID, PM_STRAIGHT_THROUGH, PM_SOFTMAX, PM_L2, PM_GATES }; /* of the task router */

enum pm_activation { PM_IDENTITY, PM_RELU, PM_GELU, PM_GELU_TANH, PM_SILU, PM_ACTIVATIONS };

/* Every kernel, one line each: K(name, (arguments)). The list makes the table below and, in kernels/all.h, fills it. */
#define PM_KERNELS(K, real)                                                                                  \
    K(peak, (ptrdiff_t n, int bf16, real b, real c, real *sum, double *flops))                               \
    K(read, (ptrdiff_t n, ptrdiff_t times, const real *x, real *sum))                                        \
    K(gemm_pack, (ptrdiff_t O, ptrdiff_t D, ptrdiff_t first, ptrdiff_t last, const real *weight,             \
                  int transpose, real scale, real *panels))                                                  \
    K(stage, (ptrdiff_t N, ptrdiff_t D, const real *x, ptrdiff_t ldx, real *xs))                             \
    K(activate, (int activation, ptrdiff_t N, ptrdiff_t D, const real *times, ptrdiff_t ld, real *xs,        \
                 real *dx, real *dtimes))                                                                    \
    K(gemm, (ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *xs, const real *panels,                      \
             ptrdiff_t panel_stride, const real *base, const real *bias, ptrdiff_t R, const real *h,         \
             ptrdiff_t ldh, const real *P, ptrdiff_t ldp, real *y, ptrdiff_t ldy))                           \
    K(gemm_pack_bf16,                                                                                        \
      (ptrdiff_t O, ptrdiff_t D, ptrdiff_t first, ptrdiff_t last, const uint16_t *weight, uint16_t *panels)) \
    K(panels_transpose,                                                                                      \
      (ptrdiff_t O, ptrdiff_t D, ptrdiff_t first, ptrdiff_t last, const real *panels, real *out))            \
    K(panels_transpose_bf16,                                                                                 \
      (ptrdiff_t O, ptrdiff_t D, ptrdiff_t first, ptrdiff_t last, const uint16_t *panels, uint16_t *out))    \
    K(gemm_bf16, (ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *xs, const uint16_t *panels,             \
                  ptrdiff_t panel_stride, const real *base, const real *bias, ptrdiff_t R, const real *h,    \
                  ptrdiff_t ldh, const real *P, ptrdiff_t ldp, real *y, ptrdiff_t ldy, real *scratch))       \
    K(proj_pack, (ptrdiff_t R, ptrdiff_t D, const real *factor, real scale, real *panels))                   \
    K(proj, (ptrdiff_t N, ptrdiff_t R, ptrdiff_t D_all, ptrdiff_t d0, ptrdiff_t D, const ptrdiff_t *at,      \
             const real *xs, const real *panels, int accumulate, real *h, ptrdiff_t ldh, real *gathered))    \
    K(outer, (ptrdiff_t N, ptrdiff_t R, ptrdiff_t D, const ptrdiff_t *at, const real *h, ptrdiff_t ldh,      \
              const real *x, ptrdiff_t ldx, int accumulate, real *dP, ptrdiff_t ldp))                        \
    K(expand, (ptrdiff_t N, ptrdiff_t R, ptrdiff_t D, const ptrdiff_t *at, const real *h, ptrdiff_t ldh,     \
               const real *P, ptrdiff_t ldp, real *y, ptrdiff_t ldy))                                        \
    K(add_rows, (ptrdiff_t N, ptrdiff_t D, const real *x, ptrdiff_t ldx, real *out))                         \
    K(combine_fwd, (ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, const real *weights, const real *h,               \
                    ptrdiff_t ldh, real *u, ptrdiff_t ldu))                                                  \
    K(combine_bwd, (ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, const real *weights, const real *h,               \
                    ptrdiff_t ldh, real scale, real *du, ptrdiff_t ldu, real *dweights))                     \
    K(weigh_fwd, (ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, int shared, const real *weights, ptrdiff_t ldw,     \
                  const real *h, ptrdiff_t ldh, real *u, ptrdiff_t ldu))                                     \
    K(weigh_bwd,                                                                                             \
      (ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, int shared, const real *weights, ptrdiff_t ldw, const real *h, \
       ptrdiff_t ldh, real scale, real *du, ptrdiff_t ldu, real *dweights, ptrdiff_t lddw))                  \
    K(mix_fwd, (ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, ptrdiff_t r,                \
                const real *weights, const real *bank, real scale, real *out, ptrdiff_t ldout))              \
    K(mix_bwd_bank, (ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, ptrdiff_t r,           \
                     const real *weights, const real *dout, ptrdiff_t ldout, real scale, real *dbank))       \
    K(mix_bwd_weights, (ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, ptrdiff_t r,        \
                        const real *bank, const real *dout, ptrdiff_t ldout, real scale, real *dweights))    \
    K(tensor_product_fwd, (ptrdiff_t order, ptrdiff_t r, ptrdiff_t m, ptrdiff_t d, const real *leaves,       \
                           double eps, real *scratch, real *out))                                            \
    K(tensor_product_bwd, (ptrdiff_t order, ptrdiff_t r, ptrdiff_t m, ptrdiff_t d, const real *leaves,       \
                           double eps, const real *dout, real *scratch, real *dleaves))                      \
    K(gelu_fwd, (ptrdiff_t n, int tanh_form, const real *x, real *y))                                        \
    K(gelu_bwd, (ptrdiff_t n, int tanh_form, const real *x, const real *dy, real *dx))                       \
    K(silu_fwd, (ptrdiff_t n, const real *x, real *y))                                                       \
    K(silu_bwd, (ptrdiff_t n, const real *x, const real *dy, real *dx))                                      \
    K(relu_fwd, (ptrdiff_t n, const real *x, real *y))                                                       \
    K(relu_bwd, (ptrdiff_t n, const real *y, const real *dy, real *dx))                                      \
    K(add, (ptrdiff_t n, const real *a, const real *b, real *y))                                             \
    K(multiply, (ptrdiff_t n, const real *a, const real *b, real *y))                                        \
    K(multiply_row, (ptrdiff_t N, ptrdiff_t D, const real *x, const real *row, real *y))                     \
    K(multiply_row_bwd,                                                                                      \
      (ptrdiff_t N, ptrdiff_t D, ptrdiff_t d0, ptrdiff_t d1, const real *dy, const real *x, real *drow))     \
    K(scale, (ptrdiff_t n, const real *x, real scale, real *y))                                              \
    K(axpy, (ptrdiff_t n, real a, const real *x, real *y))                                                   \
    K(dot, (ptrdiff_t n, const real *a, const real *b, double *out))                                         \
    K(layer_norm_fwd, (ptrdiff_t N, ptrdiff_t D, const real *x, const real *residual, const real *weight,    \
                       const real *bias, real eps, real *y, real *mean, real *rstd))                         \
    K(layer_norm_bwd, (ptrdiff_t N, ptrdiff_t D, const real *dy, const real *x, const real *residual,        \
                       const real *weight, const real *bias, const real *inverse, const real *mean,          \
                       const real *rstd, real *dx, real *dweight, real *dbias))                              \
    K(rms_norm_fwd,                                                                                          \
      (ptrdiff_t N, ptrdiff_t D, const real *x, const real *weight, real eps, real *y, real *rstd))          \
    K(rms_norm_bwd, (ptrdiff_t N, ptrdiff_t D, const real *dy, const real *x, const real *weight,            \
                     const real *inverse, const real *rstd, real *dx, real *dweight))                        \
    K(l2_normalize_fwd, (ptrdiff_t B, ptrdiff_t D, const real *x, real eps, real *y, real *norm))            \
    K(attention_scratch, (ptrdiff_t Lk, ptrdiff_t d, int backward, ptrdiff_t *values))                       \
    K(attention_fwd, (ptrdiff_t L, ptrdiff_t Lk, ptrdiff_t d, ptrdiff_t M, ptrdiff_t W, ptrdiff_t ld,        \
                      ptrdiff_t ldkv, ptrdiff_t ldlse, const real *q, const real *k, const real *v,          \
                      const real *bias, real scale, int causal, real *scratch, real *out, real *lse))        \
    K(attention_bwd, (ptrdiff_t L, ptrdiff_t Lk, ptrdiff_t d, ptrdiff_t M, ptrdiff_t W, ptrdiff_t ld,        \
                      ptrdiff_t ldkv, ptrdiff_t ldlse, const real *q, const real *k, const real *v,          \
                      const real *bias, const real *out, const real *lse, const real *dout, real scale,      \
                      int causal, real *scratch, real *dq, real *dk, real *dv))                              \
    K(rope, (ptrdiff_t N, ptrdiff_t H, ptrdiff_t d, const int64_t *positions, const real *cosines,           \
             const real *sines, int back, const real *x, real *y))                                           \
    K(gather, (ptrdiff_t N, ptrdiff_t D, const int64_t *ids, const real *table, real *y))                    \
    K(scatter_add, (ptrdiff_t N, ptrdiff_t V, ptrdiff_t D, ptrdiff_t d0, ptrdiff_t d1, const int64_t *ids,   \
                    const real *dy, real *dtable))                                                           \
    K(mean_rows_fwd, (ptrdiff_t L, ptrdiff_t D, const real *x, real *y))                                     \
    K(mean_rows_bwd, (ptrdiff_t L, ptrdiff_t D, const real *dy, real *dx))                                   \
    K(cross_entropy_fwd,                                                                                     \
      (ptrdiff_t start, ptrdiff_t end, ptrdiff_t label, const real *logits, real *loss, real *lse))          \
    K(cross_entropy_bwd, (ptrdiff_t C, ptrdiff_t start, ptrdiff_t end, ptrdiff_t label, const real *logits,  \
                          real lse, real dloss, real *dlogits))                                              \
    K(task_router_fwd,                                                                                       \
      (ptrdiff_t Q, ptrdiff_t S, const real *logits, const real *noise, const real *mask,                    \
       double temperature, int gate, int average, real *weights, real *gates, real *slopes))                 \
    K(task_router_bwd, (ptrdiff_t Q, ptrdiff_t S, const real *dweights, const real *weights,                 \
                        const real *slopes, int gate, int average, real *dlogits))                           \
    K(softmax_fwd, (ptrdiff_t N, ptrdiff_t S, const real *logits, real temperature, real *weights))          \
    K(softmax_bwd, (ptrdiff_t N, ptrdiff_t S, const real *dweights, const real *weights, real temperature,   \
                    real *dlogits))                                                                          \
    K(topk_fwd, (ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *logits, real *weights, int64_t *ids))    \
    K(topk_bwd, (ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *dweights, const real *weights,           \
                 const int64_t *ids, real *dlogits))                                                         \
    K(balance_fwd, (ptrdiff_t N, ptrdiff_t S, const real *logits, real *row, double *P))                     \
    K(balance_bwd, (ptrdiff_t N, ptrdiff_t S, const real *logits, const real *slope, real *dlogits))         \
    K(attend_fwd,                                                                                            \
      (ptrdiff_t L, ptrdiff_t D, const real *x, const real *query, real scale, real *weights, real *y))      \
    K(attend_bwd, (ptrdiff_t L, ptrdiff_t D, const real *dy, const real *x, const real *query,               \
                   const real *weights, real scale, real *dscores, real *dx, real *dquery))                  \
    K(ibp_fwd, (ptrdiff_t T, ptrdiff_t C, ptrdiff_t c, const real *logits, double *term))                    \
    K(ibp_bwd, (ptrdiff_t T, ptrdiff_t C, ptrdiff_t c, const real *logits, double dloss, real *dlogits))     \
    K(adamw, (ptrdiff_t n, double keep, double rate, double root, double beta1, double beta2, double eps,    \
              double grad_scale, const real *grad, real *data, real *m, real *v))                            \
    K(uniform, (ptrdiff_t first_block, ptrdiff_t n, uint64_t key0, uint64_t key1, uint64_t example,          \
                uint64_t step, real *out))                                                                   \
    K(l2_normalize_bwd, (ptrdiff_t B, ptrdiff_t D, const real *dy, const real *y, const real *norm, real *dx))

#define PM_MEMBER(name, args) void(*name) args;
struct pm_kernels_f32 {
    PM_KERNELS(PM_MEMBER, float)
};
struct pm_kernels_f64 {
    PM_KERNELS(PM_MEMBER, double)
};
#undef PM_MEMBER

struct pm_isa {
    const char *name;
    int (*supported)(void);
    const struct pm_kernels_f32 *f32;
    const struct pm_kernels_f64 *f64; /* base only: float64 is for references and gradient checks */
};
extern const struct pm_isa pm_isa_base;
#if defined(__x86_64__)
extern const struct pm_isa pm_isa_avx2, pm_isa_avx512, pm_isa_avx512bf16;
#elif defined(__aarch64__)
extern const struct pm_isa pm_isa_neon;
#endif

/* The tables in use: set when the module is imported, and by set_isa. */
extern const struct pm_kernels_f32 *pm_f32;
extern const struct pm_kernels_f64 *pm_f64;
#endif
