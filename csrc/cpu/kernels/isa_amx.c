/* The AMX kernels (TILE and INT8): tdpbsud on digits where many rows meet a panel of codes; the
 * kernels of AVX-512 for everything else. One call sets the thread's tile registers and
 * releases them, so nothing is kept between calls. */
#define ISA amx

#include <assert.h>

#include "cpu/kernels/vector_avx512.h"

struct tile_shapes;

#if defined(__AMX_INT8__) || defined(__AMXINT8__) /* the second is clang's older spelling */
typedef struct tile_file {
    char none; /* the tiles are in the processor's registers */
} tile_file;

/* gcc's intrinsics do not tell the compiler which memory they read. */
INLINE void tile_barrier(tile_file *tiles) {
    (void)tiles;
    __asm__ volatile("" ::: "memory");
}

/* gcc believes that the intrinsic reads 8 bytes of the shapes; the asm makes it write all 64.
 */
INLINE void tile_configure(tile_file *tiles, const struct tile_shapes *shapes) {
    (void)tiles;
    __asm__ volatile("" ::"r"(shapes) : "memory");
    _tile_loadconfig(shapes);
}

INLINE void tile_release(tile_file *tiles) {
    (void)tiles;
    _tile_release();
}

/* Macros, because register numbers must be literals. */
#define tile_zero(tiles, n)                _tile_zero(n)
#define tile_load(tiles, n, from, stride)  _tile_loadd(n, from, stride)
#define tile_store(tiles, n, to, stride)   _tile_stored(n, to, stride)
#define tile_dot(tiles, sums, acts, codes) _tile_dpbsud(sums, acts, codes)
#else
#define IS_PORTABLE

enum { N_TILES = 8 };

typedef struct tile_file {
    uint8_t n_rows[N_TILES];
    uint16_t row_bytes[N_TILES];
    uint8_t bytes[N_TILES][16][64];
} tile_file;

static void tile_barrier(tile_file *tiles) { (void)tiles; }

static void tile_configure(tile_file *tiles, const struct tile_shapes *shapes) {
    memset(tiles, 0, sizeof *tiles);
    memcpy(tiles->row_bytes, (const uint8_t *)shapes + 16, sizeof tiles->row_bytes);
    memcpy(tiles->n_rows, (const uint8_t *)shapes + 48, sizeof tiles->n_rows);
}

static void tile_release(tile_file *tiles) { memset(tiles, 0, sizeof *tiles); }

static void tile_zero(tile_file *tiles, int32_t n) {
    memset(tiles->bytes[n], 0, sizeof tiles->bytes[n]);
}

static void tile_load(tile_file *tiles, int32_t n, const void *from, int64_t stride) {
    tile_zero(tiles, n);
    for (int32_t r = 0; r < tiles->n_rows[n]; r++)
        memcpy(tiles->bytes[n][r], (const uint8_t *)from + r * stride, tiles->row_bytes[n]);
}

static void tile_store(const tile_file *tiles, int32_t n, void *to, int64_t stride) {
    for (int32_t r = 0; r < tiles->n_rows[n]; r++)
        memcpy((uint8_t *)to + r * stride, tiles->bytes[n][r], tiles->row_bytes[n]);
}

/* The processor would fault where the asserts fail. */
static void tile_dot(tile_file *tiles, int32_t sums, int32_t acts, int32_t codes) {
    const int32_t n_k = tiles->row_bytes[acts] / 4;
    assert(n_k > 0 && tiles->n_rows[sums] == tiles->n_rows[acts]);
    assert(tiles->n_rows[codes] == n_k && tiles->row_bytes[sums] == tiles->row_bytes[codes]);
    for (int32_t r = 0; r < tiles->n_rows[sums]; r++)
        for (int32_t n = 0; n < tiles->row_bytes[sums] / 4; n++) {
            int32_t sum;
            memcpy(&sum, &tiles->bytes[sums][r][4 * n], sizeof sum);
            for (int32_t k = 0; k < n_k; k++)
                for (int32_t j = 0; j < 4; j++)
                    sum += (int8_t)tiles->bytes[acts][r][4 * k + j] *
                           tiles->bytes[codes][k][4 * n + j];
            memcpy(&tiles->bytes[sums][r][4 * n], &sum, sizeof sum);
        }
}
#endif

#include "cpu/kernels/table_tiles.h"
