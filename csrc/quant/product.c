/* Products of large matrices: see product.h. */
#include "quant/product.h"

#include <math.h>
#include <string.h>

#include "base/ints.h"
#include "base/memory.h"

enum {
    MAX_TILE = LMD_MAX_TILE_ROWS * LMD_MAX_TILE_COLS,
    ROW_PANELS = 4, /* of one item of work */
    DEPTH = 256,    /* of the panels that exist at once */
    FACTOR_BLOCK = 96
};

/* Copies `width` columns as the kernels read them: [depth][width], with zeros after the last.
 */
static void pack_panel(const lmd_operand *from, int32_t panel, int32_t width, float *out) {
    const int32_t begin = panel * width, n = lmd_min_i32(width, from->n - begin);
    const float *a = from->a + begin * from->column_stride;
    for (int32_t k = 0; k < from->depth; k++, a += from->row_stride, out += width) {
        if (from->column_stride == 1)
            memcpy(out, a, (size_t)n * sizeof *out);
        else
            for (int32_t i = 0; i < n; i++) out[i] = a[i * from->column_stride];
        for (int32_t i = n; i < width; i++) out[i] = 0.0f;
    }
}

/* out[i][j] += the sum over k of left(k, i) * right(k, j), where j <= i + beyond. */
typedef struct product {
    const lmd_matrix_kernels *kernels;
    lmd_operand left, right; /* of equal depth */
    int32_t beyond;          /* 0: the lower triangle; right.n: all */
    float *out;
    int64_t stride;
    float *left_panels, *right_panels;
} product;

static void pack_left(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                      bool is_first) {
    const product *self = arg;
    const int32_t width = self->kernels->tile_rows;
    (void)stage, (void)thread_idx, (void)is_first;
    pack_panel(&self->left, item, width,
               self->left_panels + (int64_t)item * width * self->left.depth);
}

static void pack_right(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                       bool is_first) {
    const product *self = arg;
    const int32_t width = self->kernels->tile_cols;
    (void)stage, (void)thread_idx, (void)is_first;
    pack_panel(&self->right, item, width,
               self->right_panels + (int64_t)item * width * self->right.depth);
}

/* One tile; of one at an edge, the part that exists. */
static void multiply_tile(const product *self, int32_t row_panel, int32_t col_panel) {
    const lmd_matrix_kernels *kernels = self->kernels;
    const int32_t depth = self->left.depth;
    const int32_t row = row_panel * kernels->tile_rows, col = col_panel * kernels->tile_cols;
    const int32_t n_rows = lmd_min_i32(kernels->tile_rows, self->left.n - row);
    const int32_t n_cols = lmd_min_i32(kernels->tile_cols, self->right.n - col);
    const float *left = self->left_panels + (int64_t)row * depth;
    const float *right = self->right_panels + (int64_t)col * depth;
    float *out = self->out + row * self->stride + col;
    if (n_rows == kernels->tile_rows && n_cols == kernels->tile_cols) {
        kernels->product(out, self->stride, left, right, depth);
        return;
    }
    float tile[MAX_TILE] = {0};
    for (int32_t i = 0; i < n_rows; i++)
        memcpy(tile + i * LMD_MAX_TILE_COLS, out + i * self->stride,
               (size_t)n_cols * sizeof *tile);
    kernels->product(tile, LMD_MAX_TILE_COLS, left, right, depth);
    for (int32_t i = 0; i < n_rows; i++)
        memcpy(out + i * self->stride, tile + i * LMD_MAX_TILE_COLS,
               (size_t)n_cols * sizeof *tile);
}

/* Some rows of tiles; of a triangle the longest first. */
static void multiply_rows(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                          bool is_first) {
    const product *self = arg;
    const int32_t tile_rows = self->kernels->tile_rows, tile_cols = self->kernels->tile_cols;
    const int32_t begin = (stage->n_items - 1 - item) * ROW_PANELS;
    const int32_t end = lmd_min_i32(begin + ROW_PANELS, lmd_ceil_div(self->left.n, tile_rows));
    (void)thread_idx, (void)is_first;
    const int32_t n_cols = lmd_min_i32(end * tile_rows + self->beyond, self->right.n);
    for (int32_t col = 0; col * tile_cols < n_cols; col++)
        for (int32_t row = begin; row < end; row++)
            if (col * tile_cols < (row + 1) * tile_rows + self->beyond)
                multiply_tile(self, row, col);
}

static size_t panel_bytes(const lmd_operand *operand, int32_t width) {
    return (size_t)lmd_ceil_div(operand->n, width) * (size_t)width *
           (size_t)lmd_min_i32(operand->depth, DEPTH) * sizeof(float);
}

static void multiply_slice(product *self, lmd_threads *threads) {
    const int32_t n_rows = lmd_ceil_div(self->left.n, self->kernels->tile_rows);
    lmd_stage stages[] = {
        {.run = pack_left, .n_items = n_rows},
        {.run = pack_right, .n_items = lmd_ceil_div(self->right.n, self->kernels->tile_cols)},
        {.run = multiply_rows, .n_items = lmd_ceil_div(n_rows, ROW_PANELS)},
    };
    lmd_threads_run(threads, stages, sizeof *stages, sizeof stages / sizeof *stages, self);
}

/* Adds a slice of DEPTH after the other. */
static lmd_status add(const lmd_compute *compute, product job, lmd_err *err) {
    const int32_t depth = job.left.depth;
    job.kernels = compute->kernels;
    const size_t left_bytes = panel_bytes(&job.left, job.kernels->tile_rows);
    const size_t right_bytes = panel_bytes(&job.right, job.kernels->tile_cols);
    job.left_panels = lmd_alloc_large(left_bytes);
    job.right_panels = lmd_alloc_large(right_bytes);
    const bool has_room = job.left_panels && job.right_panels;
    for (int32_t k = 0; has_room && k < depth; k += DEPTH) {
        job.left.depth = job.right.depth = lmd_min_i32(DEPTH, depth - k);
        multiply_slice(&job, compute->threads);
        job.left.a += DEPTH * job.left.row_stride;
        job.right.a += DEPTH * job.right.row_stride;
    }
    lmd_free_large(job.left_panels, left_bytes);
    lmd_free_large(job.right_panels, right_bytes);
    return has_room ? LMD_OK : lmd_no_memory(err, "a product of matrices");
}

lmd_status lmd_gram_add(const lmd_compute *compute, const float *x, int32_t n_rows,
                        int32_t n_cols, float *gram, lmd_err *err) {
    const lmd_operand columns = {x, n_cols, 1, n_cols, n_rows};
    return add(compute,
               (product){.left = columns, .right = columns, .out = gram, .stride = n_cols},
               err);
}

lmd_status lmd_product_add(const lmd_compute *compute, const lmd_operand *left,
                           const lmd_operand *right, float *out, lmd_err *err) {
    return add(
        compute,
        (product){
            .left = *left, .right = *right, .beyond = right->n, .out = out, .stride = right->n},
        err);
}

void lmd_mirror(float *a, int32_t n) {
    enum { TILE = 64 };
    for (int32_t row = 0; row < n; row += TILE)
        for (int32_t col = 0; col <= row; col += TILE)
            for (int32_t i = row; i < lmd_min_i32(row + TILE, n); i++)
                for (int32_t j = col; j < lmd_min_i32(col + TILE, i); j++)
                    a[(int64_t)j * n + i] = a[(int64_t)i * n + j];
}

/* ---- Cholesky: blocks of columns, from the left ---- */

typedef struct factor {
    const lmd_matrix_kernels *kernels;
    float *a;
    int32_t n, first, width; /* the block of columns at hand */
    /* Of the block's own factor L: [column of L^-T][row], FACTOR_BLOCK squared; and the same as
     * panels for the kernels. */
    float *inverse, *inverse_panels;
    float *negative; /* [n - first - width, width] the block's rows below, times -1 */
} factor;

/* Factors the block on the diagonal, and inverts the factor, transposed. False: it is not
 * positive definite. */
static bool factor_block(factor *self) {
    const int32_t n = self->width;
    double l[FACTOR_BLOCK][FACTOR_BLOCK] = {{0}}, inverse[FACTOR_BLOCK][FACTOR_BLOCK] = {{0}};
    for (int32_t i = 0; i < n; i++) {
        float *row = self->a + (int64_t)(self->first + i) * self->n + self->first;
        for (int32_t j = 0; j <= i; j++) {
            double sum = row[j];
            for (int32_t k = 0; k < j; k++) sum -= l[i][k] * l[j][k];
            if (i == j && !(sum > 0.0 && sum < INFINITY)) return false;
            l[i][j] = i == j ? sqrt(sum) : sum / l[j][j];
            row[j] = (float)l[i][j];
        }
    }
    for (int32_t j = 0; j < n; j++)
        for (int32_t i = j; i < n; i++) {
            double sum = i == j ? 1.0 : 0.0;
            for (int32_t k = j; k < i; k++) sum -= l[i][k] * inverse[k][j];
            inverse[i][j] = sum / l[i][i];
        }
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < n; j++)
            self->inverse[i * FACTOR_BLOCK + j] = (float)inverse[j][i];
    return true;
}

/* Some rows below the block become those of the factor: times the transpose of the inverse. */
static void finish_rows(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                        bool is_first) {
    const factor *self = arg;
    const int32_t n_rows = self->kernels->tile_rows, n_cols = self->kernels->tile_cols;
    const int32_t begin = self->first + self->width, width = self->width;
    const lmd_operand below = {self->a + (int64_t)begin * self->n + self->first, 1, self->n,
                               self->n - begin, width};
    float panel[FACTOR_BLOCK * LMD_MAX_TILE_ROWS];
    (void)stage, (void)thread_idx, (void)is_first;
    pack_panel(&below, item, n_rows, panel);
    for (int32_t col = 0; col < width; col += n_cols) {
        float tile[MAX_TILE] = {0};
        self->kernels->product(tile, n_cols, panel, self->inverse_panels + col * width, width);
        for (int32_t i = 0; i < lmd_min_i32(n_rows, below.n - item * n_rows); i++) {
            const int64_t row = item * n_rows + i;
            for (int32_t j = 0; j < lmd_min_i32(n_cols, width - col); j++) {
                const float value = tile[i * n_cols + j];
                self->a[(begin + row) * self->n + self->first + col + j] = value;
                self->negative[row * width + col + j] = -value;
            }
        }
    }
}

/* The block's rows below, and what they take from the columns to the right. */
static lmd_status finish_block(const lmd_compute *compute, factor *self, lmd_err *err) {
    const int32_t begin = self->first + self->width, n_below = self->n - begin;
    if (n_below == 0) return LMD_OK;
    const lmd_operand inverse = {self->inverse, FACTOR_BLOCK, 1, self->width, self->width};
    const int32_t n_cols = self->kernels->tile_cols;
    for (int32_t i = 0; i * n_cols < self->width; i++)
        pack_panel(&inverse, i, n_cols, self->inverse_panels + i * n_cols * self->width);
    lmd_stage stage = {.run = finish_rows,
                       .n_items = lmd_ceil_div(n_below, self->kernels->tile_rows)};
    lmd_threads_run(compute->threads, &stage, sizeof stage, 1, self);
    const lmd_operand below = {self->a + (int64_t)begin * self->n + self->first, 1, self->n,
                               n_below, self->width};
    const lmd_operand negative = {self->negative, 1, self->width, n_below, self->width};
    return add(compute,
               (product){.left = negative,
                         .right = below,
                         .out = self->a + (int64_t)begin * self->n + begin,
                         .stride = self->n},
               err);
}

lmd_status lmd_cholesky(const lmd_compute *compute, float *a, int32_t n, lmd_err *err) {
    enum { SQUARE = FACTOR_BLOCK * FACTOR_BLOCK };
    lmd_status status = LMD_OK;
    factor self = {.kernels = compute->kernels, .a = a, .n = n};
    const size_t n_floats = (size_t)n * FACTOR_BLOCK + 2 * SQUARE,
                 n_bytes = n_floats * sizeof *a;
    self.inverse = lmd_alloc_large(n_bytes);
    if (!self.inverse) return lmd_no_memory(err, "factoring a matrix of %d columns", n);
    self.inverse_panels = self.inverse + SQUARE;
    self.negative = self.inverse_panels + SQUARE;
    for (; self.first < n && status == LMD_OK; self.first += self.width) {
        self.width = lmd_min_i32(FACTOR_BLOCK, n - self.first);
        status = factor_block(&self)
                     ? finish_block(compute, &self, err)
                     : lmd_fail(err, LMD_INVALID,
                                "the matrix is not positive definite at columns %d to %d",
                                self.first, self.first + self.width - 1);
    }
    lmd_free_large(self.inverse, n_bytes);
    return status;
}
