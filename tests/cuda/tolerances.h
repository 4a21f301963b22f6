/* How far a row of kernels may be from "ref": largest |difference| / largest |value of ref|. */
#ifndef TESTS_CUDA_TOLERANCES_H
#define TESTS_CUDA_TOLERANCES_H

#define TOLERANCE_EMBED      0.0  /* the same operations */
#define TOLERANCE_NORM       1e-3 /* halves; sums in another order */
#define TOLERANCE_LINEAR_F16 1e-3 /* stored as halves */
#define TOLERANCE_LINEAR_F32 2e-4 /* fp32 sums in another order */
#define TOLERANCE_WRITE_KV_Q 1e-3
#define TOLERANCE_ATTENTION  4e-3 /* probabilities and decoded K, V are halves */
#define TOLERANCE_LOGPROB    1e-5

#endif
